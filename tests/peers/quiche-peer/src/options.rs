//! The command line, and what each client in the field sets on its connection.

use std::{error::Error, net::SocketAddr, time::Duration};

/// Which client of the field to be on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// quic-test-client: no SNI, verifies only with a CA file, may hold a client certificate.
    TestClient,
    /// The connector: no SNI, verifies by default, sends a PING every 10 s.
    Connector,
    /// The agent core: SNI `ztna-server`, 16-byte connection ids, sends at most 1200-byte UDP payloads.
    AgentCore,
}

impl Profile {
    /// The length of the connection ids this client chooses, in bytes.
    pub fn cid_length(self) -> usize {
        match self {
            Self::TestClient | Self::Connector => 20,
            Self::AgentCore => 16,
        }
    }

    /// The name sent as SNI and checked in the certificate; `None` leaves only the chain to check.
    pub fn server_name(self) -> Option<&'static str> {
        match self {
            Self::TestClient | Self::Connector => None,
            Self::AgentCore => Some("ztna-server"),
        }
    }
}

/// Everything the command line says.
#[derive(Debug)]
pub struct Options {
    /// The client to be.
    pub profile: Profile,
    /// Where to connect to.
    pub server: SocketAddr,
    /// The local address; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// Between two keepalives on a direct path.
    pub keepalive: Duration,
    /// How long one may be unanswered.
    pub keepalive_timeout: Duration,
    /// Whether an agent probes and connects from other sockets than the one to the relay, as the macOS app does.
    pub own_sockets: bool,
    trust: Trust,
    direct_trust: Trust,
    stream_window: u64,
}

/// PEM files of one kind of connection.
#[derive(Debug, Default)]
struct Trust {
    ca_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
    verify: bool,
}

impl Options {
    /// Reads the arguments without the program's name.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut profile, mut server, mut bind) = (None, None::<SocketAddr>, None);
        let (mut trust, mut direct_trust) = (Trust::default(), Trust::default());
        let (mut keepalive, mut keepalive_timeout) =
            (Duration::from_secs(15), Duration::from_secs(5));
        let (mut no_verify, mut own_sockets, mut stream_window) = (false, false, 1_000_000);
        while let Some(flag) = args.next() {
            match flag.as_str() {
                "--no-verify-peer" => {
                    no_verify = true;
                    continue;
                }
                "--own-sockets" => {
                    own_sockets = true;
                    continue;
                }
                _ => {}
            }
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--profile" => {
                    profile = Some(match value.as_str() {
                        "test-client" => Profile::TestClient,
                        "connector" => Profile::Connector,
                        "agent-core" => Profile::AgentCore,
                        other => return Err(format!("no profile {other}").into()),
                    });
                }
                "--server" => server = Some(value.parse()?),
                "--bind" => bind = Some(value.parse()?),
                "--ca-cert" => trust.ca_cert = Some(value),
                "--cert" => trust.cert = Some(value),
                "--key" => trust.key = Some(value),
                "--direct-ca-cert" => direct_trust.ca_cert = Some(value),
                "--direct-cert" => direct_trust.cert = Some(value),
                "--direct-key" => direct_trust.key = Some(value),
                "--keepalive-ms" => keepalive = Duration::from_millis(value.parse()?),
                "--keepalive-timeout-ms" => {
                    keepalive_timeout = Duration::from_millis(value.parse()?);
                }
                "--stream-window" => stream_window = value.parse()?,
                other => return Err(format!("no flag {other}").into()),
            }
        }
        let profile = profile.ok_or("--profile is missing")?;
        let server = server.ok_or("--server is missing")?;
        for Trust { cert, key, .. } in [&trust, &direct_trust] {
            if cert.is_some() != key.is_some() {
                return Err("a certificate and its key go together".into());
            }
        }
        if trust.cert.is_some() && profile != Profile::TestClient {
            return Err("only test-client can present a client certificate".into());
        }
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let bind = match bind {
            Some(address) => address,
            None => any.parse()?,
        };
        trust.verify = !no_verify && (profile != Profile::TestClient || trust.ca_cert.is_some());
        // The macOS app does not verify connectors; a connector verifies no agent.
        direct_trust.verify = direct_trust.ca_cert.is_some();
        Ok(Self {
            profile,
            server,
            bind,
            keepalive,
            keepalive_timeout,
            own_sockets,
            trust,
            direct_trust,
            stream_window,
        })
    }

    /// The transport parameters, ALPN and trust of the profile.
    pub fn config(&self) -> Result<quiche::Config, Box<dyn Error>> {
        self.config_with(&self.trust)
    }

    /// The same for direct connections.
    pub fn direct_config(&self) -> Result<quiche::Config, Box<dyn Error>> {
        self.config_with(&self.direct_trust)
    }

    /// [`Self::direct_config`] for what is accepted; `None` without a certificate.
    pub fn accept_config(&self) -> Result<Option<quiche::Config>, Box<dyn Error>> {
        self.direct_trust.cert.is_some().then(|| self.direct_config()).transpose()
    }

    fn config_with(&self, trust: &Trust) -> Result<quiche::Config, Box<dyn Error>> {
        const DATAGRAM_QUEUE: usize = 1_000;
        let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION)?;
        config.set_application_protos(&[b"ztna-v1"])?;
        config.set_max_idle_timeout(30_000);
        config.set_initial_max_data(10_000_000);
        config.set_initial_max_stream_data_bidi_local(self.stream_window);
        config.set_initial_max_stream_data_bidi_remote(self.stream_window);
        config.set_initial_max_streams_bidi(100);
        config.set_initial_max_streams_uni(100);
        config.enable_dgram(true, DATAGRAM_QUEUE, DATAGRAM_QUEUE);
        if self.profile == Profile::AgentCore {
            // The UDP payload sizes stay at quiche's defaults: 65527 announced, 1200 sent.
            config.set_disable_active_migration(true);
        } else {
            config.set_max_recv_udp_payload_size(1_350);
            config.set_max_send_udp_payload_size(1_350);
        }
        config.verify_peer(trust.verify);
        if let Some(file) = &trust.ca_cert {
            config.load_verify_locations_from_file(file)?;
        }
        if let (Some(cert), Some(key)) = (&trust.cert, &trust.key) {
            config.load_cert_chain_from_pem_file(cert)?;
            config.load_priv_key_from_pem_file(key)?;
        }
        Ok(config)
    }
}
