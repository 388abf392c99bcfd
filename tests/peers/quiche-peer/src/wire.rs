//! What signaling and probes look like: bincode 1.3 with its defaults, the codec of the clients in the field.

use std::{error::Error, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// The first byte of every probe and keepalive.
pub const PROBE: u8 = 0x5a;
/// The second byte of a keepalive, before the four of its nonce.
pub const KEEPALIVE: u8 = 0x10;
/// The second byte of the answer to one.
pub const KEPT_ALIVE: u8 = 0x11;
const MAX_FRAME: usize = 65_536;
const HEAD: usize = 4;

/// The payload of one frame.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// An agent asks for a direct path.
    CandidateOffer {
        /// Chosen by the agent.
        session: u64,
        /// Whose connector is meant.
        service: String,
        /// Where the agent may be reached.
        candidates: Vec<Candidate>,
    },
    /// A connector's answer.
    CandidateAnswer {
        /// That of the offer.
        session: u64,
        /// Where the connector may be reached.
        candidates: Vec<Candidate>,
    },
    /// The relay lets both begin.
    StartPunching {
        /// That of the offer.
        session: u64,
        /// In milliseconds.
        start_delay_ms: u64,
        /// Where the other one may be reached.
        peer_candidates: Vec<Candidate>,
    },
    /// No client in the field sends it.
    PunchingResult {
        /// That of the offer.
        session: u64,
        /// Whether a probe was answered.
        success: bool,
        /// Where from.
        working_address: Option<SocketAddr>,
    },
    /// The session is over.
    Error {
        /// `None` where the offer could not be read.
        session: Option<u64>,
        /// Why.
        code: u32,
        /// Why, in words.
        message: String,
    },
}

/// One address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it comes from.
    pub kind: Kind,
    /// As `host:port` in JSON.
    pub address: SocketAddr,
    /// The highest is tried first.
    pub priority: u32,
    /// The same for candidates of one origin.
    pub foundation: String,
    /// The local address behind it.
    pub related: Option<SocketAddr>,
}

/// Where a candidate comes from.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An address of the host itself.
    Host,
    /// As the relay sees it.
    ServerReflexive,
    /// As the other peer sees it.
    PeerReflexive,
    /// The relay's own.
    Relay,
}

impl Candidate {
    /// A candidate with the priority and the foundation that the clients in the field give its kind.
    pub fn new(kind: Kind, address: SocketAddr, related: Option<SocketAddr>) -> Self {
        let (preference, name) = match kind {
            Kind::Host => (126_u32, "host"),
            Kind::PeerReflexive => (110, "prflx"),
            Kind::ServerReflexive => (100, "srflx"),
            Kind::Relay => (0, "relay"),
        };
        let priority = preference << 24 | 65_535 << 8 | 255;
        let foundation = format!("{name}_{}", address.ip());
        Self { kind, address, priority, foundation, related }
    }
}

/// A message as it goes onto a stream.
pub fn frame(message: &Message) -> Result<Vec<u8>, Box<dyn Error>> {
    let payload = bincode::serialize(message)?;
    let mut frame = u32::try_from(payload.len())?.to_be_bytes().to_vec();
    frame.extend(payload);
    Ok(frame)
}

/// What has come on streams, cut into frames.
#[derive(Default)]
pub struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Adds bytes in the order of their arrival.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend(data);
    }

    /// The payload of the next whole frame. One that is too long is waited for in vain.
    pub fn next_frame(&mut self) -> Option<Vec<u8>> {
        let length = u32::from_be_bytes(*self.buffer.first_chunk::<HEAD>()?) as usize;
        if length > MAX_FRAME || self.buffer.len() < HEAD + length {
            return None;
        }
        let rest = self.buffer.split_off(HEAD + length);
        let frame = std::mem::replace(&mut self.buffer, rest);
        Some(frame[HEAD..].to_vec())
    }
}

/// What follows [`PROBE`] where it is no keepalive.
#[derive(Debug, Serialize, Deserialize)]
pub enum Probe {
    /// Asks whether this address works.
    Request {
        /// Random.
        transaction: [u8; 12],
        /// That of the candidate.
        priority: u64,
        /// Always false.
        use_candidate: bool,
    },
    /// Says that it does.
    Response {
        /// That of the request.
        transaction: [u8; 12],
        /// Always true.
        success: bool,
        /// Where the request came from.
        mapped: Option<SocketAddr>,
    },
}

impl Probe {
    /// The UDP payload.
    pub fn encode(&self) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut packet = vec![PROBE];
        bincode::serialize_into(&mut packet, self)?;
        Ok(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::to_hex;

    /// The example of docs/protocol.md section 4.3.
    const OFFER: &str = "00000050000000002a000000000000000700000000000000686a2d366537630100000000000000\
        0000000000000000c0a8016450c3ffffff7e1200000000000000686f73745f3139322e3136382e312e31303000";

    #[test]
    fn the_offer_of_the_protocol() {
        let address = "192.168.1.100:50000".parse().unwrap();
        let candidates = vec![Candidate::new(Kind::Host, address, None)];
        let offer = Message::CandidateOffer { session: 42, service: "hj-6e7c".into(), candidates };
        assert_eq!(to_hex(&frame(&offer).unwrap()), OFFER);
    }

    #[test]
    fn frames_whatever_the_pieces() {
        let mut frames = Frames::default();
        for byte in [0, 0, 0, 2, 7, 8, 0, 0, 0, 0, 0, 0, 0, 1] {
            frames.push(&[byte]);
        }
        assert_eq!(frames.next_frame(), Some(vec![7, 8]));
        assert_eq!(frames.next_frame(), Some(vec![]));
        assert_eq!(frames.next_frame(), None);
        frames.push(&[9]);
        assert_eq!(frames.next_frame(), Some(vec![9]));
    }

    #[test]
    fn probes() {
        let request = Probe::Request { transaction: [1; 12], priority: 2, use_candidate: false };
        let expected = format!("5a00000000{}020000000000000000", "01".repeat(12));
        assert_eq!(to_hex(&request.encode().unwrap()), expected);
        let mapped = Some("10.1.0.2:4433".parse().unwrap());
        let response = Probe::Response { transaction: [1; 12], success: true, mapped };
        assert_eq!(response.encode().unwrap().len(), 29);
    }
}
