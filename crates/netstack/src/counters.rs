//! The counters of a tunnel.

use ztna_packet::counter::Counter;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Totals and gauges of one tunnel.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
            lost: [Counter; TunnelDrop::ALL.len()],
        }

        impl Counters {
            /// Every value by its name; drops as `drop_` and their reason.
            pub fn snapshot(&self) -> Vec<(String, u64)> {
                let totals = [$((stringify!($name).to_owned(), self.$name.get()),)*];
                let drops = TunnelDrop::ALL.iter().zip(&self.lost);
                let drops = drops.map(|(r, n)| (format!("drop_{}", r.as_str()), n.get()));
                totals.into_iter().chain(drops).collect()
            }
        }
    };
}

counters! {
    /// Packets from the relay.
    packets_in,
    /// Their bytes.
    bytes_in,
    /// Packets to the relay.
    packets_out,
    /// Their bytes, the service wrapper not counted.
    bytes_out,
    /// TCP flows open, those on their way included (gauge).
    tcp_flows,
    /// UDP flows open (gauge).
    udp_flows,
    /// TCP flows opened since the start.
    tcp_opened,
    /// UDP flows opened since the start.
    udp_opened,
    /// UDP flows ended early, to make room for another of their source.
    udp_displaced,
    /// UDP packets that the other side or its application refused.
    udp_refused,
    /// TCP connections refused: by us, the other side or the application.
    tcp_refused,
    /// TCP flows that ended in a reset or a timeout.
    tcp_aborted,
    /// Bytes of fragments that wait for the rest of their packets (gauge).
    fragment_bytes,
    /// Echo requests answered.
    echo_answered,
    /// ICMP errors sent.
    icmp_sent,
}

macro_rules! drops {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// The reason of a packet dropped by a tunnel; a closed set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum TunnelDrop { $($(#[$doc])* $variant,)* }

        impl TunnelDrop {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// A stable word for logs and metric labels.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drops! {
    /// The tunnel has no connection.
    Detached => "detached",
    /// The service is not acknowledged on the present connection.
    NotAcknowledged => "not_acknowledged",
    /// The service has no connector at the relay.
    NoConnector => "no_connector",
    /// Not an IP packet, or one with impossible lengths, checksums or addresses.
    Malformed => "malformed",
    /// A fragment that contradicts another one of its packet, or fits into no packet.
    Fragment => "fragment",
    /// A fragment that gave its place to newer ones.
    FragmentLimit => "fragment_limit",
    /// A fragment whose packet was not complete in time.
    FragmentTimeout => "fragment_timeout",
    /// Neither TCP nor UDP nor an echo request.
    Protocol => "protocol",
    /// From an address that is no valid source here.
    BadSource => "bad_source",
    /// For none of the services, or from none of them.
    NoService => "no_service",
    /// Of no known flow.
    NoFlow => "no_flow",
    /// At the limit of flows, in total or of this source.
    FlowLimit => "flow_limit",
    /// Beyond the rate of new flows.
    FlowRate => "flow_rate",
    /// Beyond the rate of answered echo requests.
    EchoRate => "echo_rate",
    /// Larger than the limit of the connection.
    TooLarge => "too_large",
    /// No room in the queue to the relay.
    TxQueueFull => "link_full",
    /// The application or the TUN interface refused it.
    LocalFull => "local_full",
}

impl Counters {
    /// Counts `n` packets dropped.
    pub fn dropped(&self, reason: TunnelDrop, n: u64) {
        self.lost[reason as usize].add(n);
    }

    /// Packets dropped for this reason.
    pub fn drops(&self, reason: TunnelDrop) -> u64 {
        self.lost[reason as usize].get()
    }
}
