//! The lines between the test and this program.

use std::{
    io::{BufRead, Write},
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
};

use serde::{Deserialize, Serialize};

use crate::wire::Candidate;

/// One line on stdin, for example `{"send_hex":"1004..."}`, `{"ping":true}`.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Sends one DATAGRAM.
    SendHex(String),
    /// Sends the same DATAGRAM `count` times, as fast as the send queue takes them.
    SendMany {
        /// The DATAGRAM.
        hex: String,
        /// How often, at least once.
        count: usize,
    },
    /// Sends a PING frame.
    Ping(True),
    /// Closes with application code 0.
    Close(True),
    /// Goes on from a new local port without telling the connection: a NAT that rebinds.
    Rebind(True),
    /// Asks for [`Event::Stats`].
    Stats(True),
    /// Issues one more connection id to the server.
    NewCid(True),
    /// Turns answering of inner ICMP and UDP echo on or off.
    Echo(bool),
    /// Sends the payloads of inner UDP packets to an application, and its answers back.
    Forward(SocketAddrV4),
    /// Asks for a direct path to the connector of a service; an agent core goes on from there.
    Offer {
        /// The number of the session.
        session: u64,
        /// The service.
        service: String,
    },
    /// Tells these candidates in offers and answers instead of the addresses it has.
    Candidates(Vec<Candidate>),
    /// Writes bytes to a stream as they are.
    Stream {
        /// 0 for signaling.
        id: u64,
        /// The bytes.
        hex: String,
        /// Whether they are the last ones.
        fin: bool,
    },
    /// Goes on reading streams, or leaves them unread.
    Reading(bool),
    /// Sends an IP packet to a service directly if there is a path, else through the relay.
    SendPacket {
        /// The service.
        service: String,
        /// The packet.
        hex: String,
    },
    /// Closes the direct connections with application code 0.
    CloseDirect(True),
}

/// The `true` of a command that has nothing else to say.
#[derive(Deserialize)]
#[serde(try_from = "bool")]
pub struct True;

impl TryFrom<bool> for True {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Ok(Self) } else { Err("must be true") }
    }
}

/// One line on stdout; the field `event` holds the variant's name in snake case.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The socket is bound and the first packet is about to leave.
    Started {
        /// The local address.
        local: String,
    },
    /// The handshake is complete on this side.
    Connected {
        /// What the server announced.
        server_params: ServerParams,
        /// The protocol chosen.
        alpn: String,
        /// The server's leaf certificate, DER in hex.
        certificate: Option<String>,
        /// The largest DATAGRAM that can be written now, in bytes.
        max_writable: Option<usize>,
    },
    /// A DATAGRAM came in.
    Datagram {
        /// Its payload.
        hex: String,
    },
    /// A send command is done.
    Sent {
        /// Whether every DATAGRAM was accepted for sending.
        ok: bool,
        /// How many were.
        count: usize,
        /// The largest DATAGRAM that can be written now, in bytes.
        max_writable: Option<usize>,
        /// What quiche said when `ok` is false.
        error: Option<String>,
    },
    /// A command other than a send was carried out, or not.
    Done {
        /// The command's name.
        command: &'static str,
        /// What went wrong.
        error: Option<String>,
    },
    /// The local port changed.
    Rebound {
        /// The new local address.
        local: String,
    },
    /// The answer to [`Command::Stats`].
    Stats {
        /// QUIC packets received.
        received: usize,
        /// QUIC packets sent.
        sent: usize,
        /// QUIC packets found lost.
        lost: usize,
        /// Connection ids of this side that the server may use.
        active_scids: usize,
        /// Further connection ids the server would take now.
        scids_left: usize,
        /// Connection ids of this side that the server has retired.
        retired_scids: usize,
        /// Spare connection ids the server has issued.
        available_dcids: usize,
        /// The server's connection id that packets are sent to now, in hex.
        dcid: String,
        /// Smoothed round-trip time of the path in microseconds.
        rtt_us: u128,
    },
    /// A frame came on a stream.
    Frame {
        /// The stream.
        stream: u64,
        /// The payload.
        hex: String,
    },
    /// A stream can be read or written no more.
    StreamEnded {
        /// The stream.
        stream: u64,
        /// `finished` or `reset` where it was read, `stopped` or `refused` where it was written.
        how: &'static str,
        /// The server's code, of a reset and a stop.
        code: Option<u64>,
    },
    /// [`Command::SendPacket`] is done.
    Routed {
        /// Whether the packet went directly.
        direct: bool,
        /// What quiche said when it did not take it.
        error: Option<String>,
    },
    /// An IP packet came on a direct connection.
    DirectDatagram {
        /// The packet.
        hex: String,
    },
    /// Something happened on the way to a direct path, or on one.
    Direct {
        /// What.
        step: Step,
        /// The other end where it is known.
        address: Option<SocketAddr>,
    },
    /// The server closed; the process ends after the draining period (RFC 9000 section 10.2.2).
    Draining {
        /// What the server said.
        error: CloseError,
    },
    /// The connection is over; the process ends.
    Closed {
        /// What ended it; `None` when this side closed without an error.
        error: Option<CloseError>,
    },
}

impl Event {
    /// An [`Event::Direct`].
    pub fn direct(step: Step, address: Option<SocketAddr>) -> Self {
        Self::Direct { step, address }
    }
}

/// What happens to direct paths.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The agent was told to begin.
    Probing,
    /// The agent's first answer to a probe came.
    Punched,
    /// A direct connection is established, at either end.
    Connected,
    /// A direct connection is over, at either end.
    Closed,
    /// The agent gives up: no StartPunching came.
    NoStart,
    /// The agent gives up: no probe was answered.
    NoAnswer,
    /// The agent gives up: the handshake took too long.
    Failed,
    /// The agent gives the path up: a keepalive was not answered.
    Lost,
    /// A probe was answered.
    Probed,
    /// A keepalive was answered.
    KeptAlive,
}

/// Transport parameters of the server as quiche decoded them.
#[derive(Debug, Serialize)]
pub struct ServerParams {
    /// Length of the connection id the server chose, in bytes.
    pub cid_length: usize,
    /// In milliseconds.
    pub max_idle_timeout: u64,
    /// In bytes.
    pub max_udp_payload_size: u64,
    /// In bytes; `None` where DATAGRAMs are off.
    pub max_datagram_frame_size: Option<u64>,
    /// In bytes.
    pub initial_max_data: u64,
    /// In bytes.
    pub initial_max_stream_data_bidi_remote: u64,
    /// Streams.
    pub initial_max_streams_bidi: u64,
    /// Connection ids the server keeps for this side.
    pub active_connection_id_limit: u64,
    /// The exponent for acknowledgement delays.
    pub ack_delay_exponent: u64,
    /// In milliseconds.
    pub max_ack_delay: u64,
    /// Whether the server forbids migration.
    pub disable_active_migration: bool,
    /// Whether the server went through Retry.
    pub retried: bool,
}

impl ServerParams {
    /// What `connection` was told; `None` before the handshake.
    pub fn of(connection: &quiche::Connection) -> Option<Self> {
        let params = connection.peer_transport_params()?;
        Some(Self {
            cid_length: connection.destination_id().len(),
            max_idle_timeout: params.max_idle_timeout,
            max_udp_payload_size: params.max_udp_payload_size,
            max_datagram_frame_size: params.max_datagram_frame_size,
            initial_max_data: params.initial_max_data,
            initial_max_stream_data_bidi_remote: params.initial_max_stream_data_bidi_remote,
            initial_max_streams_bidi: params.initial_max_streams_bidi,
            active_connection_id_limit: params.active_conn_id_limit,
            ack_delay_exponent: params.ack_delay_exponent,
            max_ack_delay: params.max_ack_delay,
            disable_active_migration: params.disable_active_migration,
            retried: params.retry_source_connection_id.is_some(),
        })
    }
}

/// Why a connection ended.
#[derive(Debug, Serialize)]
pub struct CloseError {
    /// `peer`, `local` or `timeout`.
    pub by: &'static str,
    /// Whether the code is an application's (CONNECTION_CLOSE type 0x1d).
    pub application: bool,
    /// The error code.
    pub code: u64,
    /// The reason phrase.
    pub reason: String,
}

impl CloseError {
    /// The words of quiche; `by` is `peer` or `local`.
    pub fn of(by: &'static str, error: &quiche::ConnectionError) -> Self {
        Self {
            by,
            application: error.is_app,
            code: error.error_code,
            reason: String::from_utf8_lossy(&error.reason).into_owned(),
        }
    }
}

/// Writes one event and flushes it.
pub fn emit(event: &Event) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, event)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Reads stdin in a thread; `waker` is rung for each command, and once more at the end.
pub fn read_commands(waker: Arc<mio::Waker>) -> Receiver<Result<Command, String>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let command = line.map_err(|error| error.to_string()).and_then(|text| {
                serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
            });
            if sender.send(command).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(sender);
        // Nothing to do when the poll is gone already: the process is ending.
        let _ = waker.wake();
    });
    receiver
}

/// Bytes as hex.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Hex as bytes.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(|| format!("not hex: {text}"));
    let pairs = text.as_bytes();
    if !pairs.len().is_multiple_of(2) {
        return Err(format!("odd number of hex digits: {text}"));
    }
    pairs.chunks(2).map(|pair| Ok((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}
