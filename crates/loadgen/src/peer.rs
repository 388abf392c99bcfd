//! One client of the relay: connect, wait for its address, register.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use noq::{ClientConfig, Connection, Endpoint, TransportConfig, crypto::rustls::QuicClientConfig};
use tokio::time::timeout;

use crate::{Failure, options::Common, tls, transport};

/// How long any one answer of the server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The moments at which an unanswered registration is sent again (docs/protocol.md section 2.2:
/// after 2 s and 4 s).
const REPEAT: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(4)];

const QAD_V4: u8 = 0x01;
const QAD_V6: u8 = 0x02;
const ACK: u8 = 0x12;
const NACK: u8 = 0x13;

/// The role of a client; the value is the first byte of the message.
#[derive(Clone, Copy)]
pub enum Role {
    /// Sends packets to a service.
    Agent = 0x10,
    /// Serves it.
    Connector = 0x11,
}

/// The identities and sockets that connections are made from, used in turn.
pub struct Clients {
    endpoints: Vec<Endpoint>,
    identities: Vec<ClientConfig>,
    next: AtomicUsize,
    server: std::net::SocketAddr,
    name: String,
}

impl Clients {
    /// Read the files and open the sockets of the options.
    pub fn new(common: &Common, keep_alive: Option<Duration>) -> Result<Self, Failure> {
        Self::with(common, transport::settings(keep_alive))
    }

    /// As [`new`](Self::new), with transport settings of their own.
    pub fn with(common: &Common, settings: Arc<TransportConfig>) -> Result<Self, Failure> {
        let identity = |tls: &Arc<QuicClientConfig>| {
            let mut config = ClientConfig::new(tls.clone());
            config.transport_config(settings.clone());
            config
        };
        Ok(Self {
            endpoints: transport::clients(common)?,
            identities: tls::clients(common)?.iter().map(identity).collect(),
            next: AtomicUsize::new(0),
            server: common.server,
            name: common.server_name.clone(),
        })
    }

    /// The same clients for another server, as the direct baseline needs it.
    pub fn towards(&self, server: std::net::SocketAddr) -> Self {
        Self {
            endpoints: self.endpoints.clone(),
            identities: self.identities.clone(),
            next: AtomicUsize::new(0),
            server,
            name: self.name.clone(),
        }
    }

    /// A full handshake with the next identity from the next socket.
    pub async fn handshake(&self) -> Result<Connection, Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let identity = self.identities[number % self.identities.len()].clone();
        let endpoint = &self.endpoints[number % self.endpoints.len()];
        let connecting = endpoint.connect_with(identity, self.server, &self.name)?;
        Ok(timeout(PATIENCE, connecting)
            .await
            .map_err(|_| "no answer to the handshake in 10 s")??)
    }

    /// A handshake and the address report after it, which says that the server has admitted the connection.
    pub async fn admitted(&self) -> Result<Connection, Failure> {
        let connection = self.handshake().await?;
        await_message(&connection, |data| matches!(data, [QAD_V4 | QAD_V6, ..])).await?;
        Ok(connection)
    }

    /// A connection that is registered as `role` for `service`: its acknowledgement says that it is admitted too.
    pub async fn registered(&self, role: Role, service: &str) -> Result<Connection, Failure> {
        let connection = self.handshake().await?;
        register(&connection, role, service).await?;
        Ok(connection)
    }
}

async fn await_message(
    connection: &Connection,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<Bytes, Failure> {
    let read = async {
        loop {
            let data = connection.read_datagram().await?;
            if wanted(&data) {
                return Ok::<_, Failure>(data);
            }
        }
    };
    timeout(PATIENCE, read).await.map_err(|_| "the awaited message did not come in 10 s")?
}

/// Register and wait for the acknowledgement, sending again as the clients in the field do.
pub async fn register(connection: &Connection, role: Role, service: &str) -> Result<(), Failure> {
    let length = u8::try_from(service.len()).map_err(|_| "a service id has at most 255 bytes")?;
    let named = |first: u8, data: &[u8]| {
        data.len() >= 3 + service.len()
            && data[0] == first
            && data[2] == length
            && data[3..].starts_with(service.as_bytes())
    };
    let message: Bytes = [&[role as u8, length], service.as_bytes()].concat().into();
    for wait in REPEAT {
        connection.send_datagram(message.clone())?;
        let answer =
            await_message(connection, |data| named(ACK, data) || matches!(data, [NACK, ..]));
        match timeout(wait, answer).await {
            Ok(Ok(data)) if data[0] == ACK => return Ok(()),
            Ok(Ok(data)) => {
                return Err(
                    format!("the server refused {service}: status {:?}", data.get(1)).into()
                );
            }
            Ok(Err(failure)) => return Err(failure),
            Err(_) => {}
        }
    }
    Err(format!("no acknowledgement for {service}").into())
}
