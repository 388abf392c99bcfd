//! A client's side of a join: one request on a connection of its own, and the answer to it.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use noq::{ReadError, VarInt};
use tokio::time::timeout;

use crate::{
    boundary::{
        command::ConnectConfig,
        event::{Event, Failure, FailureCause},
    },
    config::{JOIN_ALPN, MAX_JOIN},
    panics::Kept,
    quic::{
        dial,
        join::{self, Unread},
        transport,
    },
    shard::{Shard, certificates},
};

/// The time for the answer once the server is verified; a server gives up before that.
const PATIENCE: Duration = Duration::from_secs(15);

/// Begins to ask; [`dial::cancel`] ends it.
pub(crate) fn begin(shard: &Rc<Shard>, request: u64, config: ConnectConfig, data: Bytes) {
    let asking = shard.clone();
    dial::run(shard, request, async move {
        let outbox = &asking.shared.outbox;
        match ask(&asking, &config, &data).await {
            Ok((certificates, data)) => {
                outbox.push(Event::Answered { request, certificates, data })
            }
            Err(failure) => outbox.push(Event::ConnectFailed { request, failure }),
        }
    });
}

/// Asks; returns the server's certificates and its answer.
async fn ask(
    shard: &Shard,
    config: &ConnectConfig,
    data: &[u8],
) -> Result<(Vec<Vec<u8>>, Vec<u8>), Failure> {
    let crypto = config.tls.quic_join(&[JOIN_ALPN.to_vec()]).map_err(Failure::local)?;
    let transport = transport::join(2 * PATIENCE, 0).map_err(Failure::local)?;
    let (_endpoint, connection) = dial::client(shard, config, crypto, transport).await?;
    let connection = Kept::new(connection);
    let exchange = async {
        let (send, recv) = connection.open_bi().await.map_err(|e| Failure::of(&e))?;
        let (mut send, mut recv) = (Kept::new(send), Kept::new(recv));
        // An error says that the server has an answer already, or has ended the connection.
        if send.write_all(data).await.is_ok() {
            let _ = send.finish();
        }
        join::read(&mut recv).await.map_err(|e| match e {
            Unread::Lost(ReadError::ConnectionLost(e)) => Failure::of(&e),
            Unread::Lost(e) => Failure::local(e),
            Unread::TooLarge => {
                Failure::local(format!("the answer has more than {MAX_JOIN} bytes"))
            }
        })
    };
    let answer = timeout(PATIENCE, exchange).await.unwrap_or_else(|_| {
        let reason = format!("no answer from {} within {PATIENCE:?}", config.remote);
        Err(Failure::new(FailureCause::Silent, reason))
    })?;
    let shown = certificates(&connection);
    connection.close(VarInt::from_u32(0), b"");
    Ok((shown, answer))
}
