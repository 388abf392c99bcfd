//! Transport parameters of both ends: timeouts, windows and queues.

use std::{sync::Arc, time::Duration};

use noq::{TransportConfig, VarInt};

use crate::{
    boundary::command::ConnectConfig,
    config::{ListenConfig, MAX_JOIN},
    error::EngineError,
    queue::transport_queue,
    quic::outstanding,
};

/// A client's receive queue of DATAGRAMs and its socket buffers, in bytes.
pub(crate) const CLIENT_RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
/// The UDP payload that a client assumes to pass before path MTU discovery.
const CLIENT_INITIAL_MTU: u16 = 1350;
/// The window of a stream, and of all streams of a connection. A frame of signaling passes in several,
/// and no peer leaves more bytes here that are not read.
const STREAM_WINDOW: u32 = 8 * 1024;
/// Streams that a client may have open at once: it signals on one.
const CLIENT_STREAMS: u32 = 1;
/// Bytes of streams that a peer has not acknowledged, at the most; DATAGRAMs are not among them. A larger
/// frame goes in parts.
const SEND_WINDOW: u64 = 16 * 1024;
/// The UDP payload of a join: the least that every path passes (RFC 9000 section 14).
const JOIN_MTU: u16 = 1200;

/// The transport of a server's connections.
pub(crate) fn server(config: &ListenConfig) -> Result<TransportConfig, EngineError> {
    let mut transport = common(config.idle_timeout, config.initial_mtu)?;
    transport
        .congestion_controller_factory(Arc::new(outstanding::Factory::default()))
        .max_concurrent_bidi_streams(VarInt::from_u32(CLIENT_STREAMS))
        .datagram_receive_buffer_size(Some(config.receive_queue))
        .datagram_send_buffer_size(transport_queue(config.send_queue))
        .send_observed_address_reports(true);
    Ok(transport)
}

/// The transport of a client's connection.
pub(crate) fn client(config: &ConnectConfig) -> Result<TransportConfig, EngineError> {
    let idle = Duration::from_millis(config.idle_timeout_ms);
    let mut transport = common(idle, CLIENT_INITIAL_MTU)?;
    let keep_alive =
        (config.keep_alive_ms > 0).then(|| Duration::from_millis(config.keep_alive_ms));
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .datagram_receive_buffer_size(Some(CLIENT_RECEIVE_QUEUE))
        .datagram_send_buffer_size(transport_queue(config.send_queue))
        .keep_alive_interval(keep_alive)
        .receive_observed_address_reports(config.observe_address);
    Ok(transport)
}

/// The transport of a join at either end: streams for one request, and no DATAGRAMs.
pub(crate) fn join(idle: Duration, peer_streams: u32) -> Result<TransportConfig, EngineError> {
    let mut transport = common(idle, JOIN_MTU)?;
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(peer_streams))
        .stream_receive_window(VarInt::from_u32(MAX_JOIN as u32))
        .receive_window(VarInt::from_u32(MAX_JOIN as u32))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None);
    Ok(transport)
}

fn common(idle: Duration, initial_mtu: u16) -> Result<TransportConfig, EngineError> {
    let idle = idle.try_into().map_err(|e| EngineError::of("idle timeout", e))?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SEND_WINDOW)
        .initial_mtu(initial_mtu);
    Ok(transport)
}
