//! Signaling on the streams of the connection to the relay, as agent core and connector read and write them.

use std::collections::BTreeMap;

use quiche::Connection;

use crate::{
    control::{Event, emit, to_hex},
    peer::Outcome,
    wire::{Frames, Message},
};

/// What is read and what waits to be written.
pub struct Streams {
    /// The agent core reads stream 0 only; the connector reads all of them into one buffer.
    only_first: bool,
    reading: bool,
    frames: Frames,
    writing: BTreeMap<u64, Writing>,
}

#[derive(Default)]
struct Writing {
    data: Vec<u8>,
    fin: bool,
    stopped: bool,
}

impl Streams {
    /// Streams with nothing on them yet.
    pub fn new(only_first: bool) -> Self {
        Self { only_first, reading: true, frames: Frames::default(), writing: BTreeMap::new() }
    }

    /// Goes on reading, or leaves everything unread.
    pub fn read_on(&mut self, reading: bool) {
        self.reading = reading;
    }

    /// Queues bytes, whatever they are; `fin` ends the stream after them, which no client in the field does.
    pub fn queue(&mut self, stream: u64, data: &[u8], fin: bool) {
        let writing = self.writing.entry(stream).or_default();
        writing.data.extend(data);
        writing.fin |= fin;
    }

    /// Takes what has come; returns the messages that could be decoded.
    pub fn read(&mut self, relay: &mut Connection, buffer: &mut [u8]) -> Outcome<Vec<Message>> {
        self.notice_stops(relay)?;
        let mut messages = Vec::new();
        if !self.reading {
            return Ok(messages);
        }
        for stream in relay.readable().filter(|stream| !self.only_first || *stream == 0) {
            loop {
                match relay.stream_recv(stream, buffer) {
                    Ok((length, fin)) => {
                        self.frames.push(&buffer[..length]);
                        if fin {
                            emit(&Event::StreamEnded { stream, how: "finished", code: None })?;
                            break;
                        }
                    }
                    Err(quiche::Error::StreamReset(code)) => {
                        emit(&Event::StreamEnded { stream, how: "reset", code: Some(code) })?;
                        break;
                    }
                    Err(_) => break,
                }
            }
            while let Some(payload) = self.frames.next_frame() {
                emit(&Event::Frame { stream, hex: to_hex(&payload) })?;
                match bincode::deserialize(&payload) {
                    Ok(message) => messages.push(message),
                    Err(error) => eprintln!("quiche-peer: frame on stream {stream}: {error}"),
                }
            }
        }
        Ok(messages)
    }

    /// Gives quiche as much of what waits as it takes.
    pub fn write(&mut self, relay: &mut Connection) -> Outcome {
        if !relay.is_established() {
            return Ok(());
        }
        for (&stream, writing) in &mut self.writing {
            while !writing.stopped && (writing.fin || !writing.data.is_empty()) {
                match relay.stream_send(stream, &writing.data, writing.fin) {
                    Ok(taken) if taken == writing.data.len() => {
                        writing.data.clear();
                        writing.fin = false;
                    }
                    Ok(0) | Err(quiche::Error::Done | quiche::Error::StreamStopped(_)) => break,
                    Ok(taken) => drop(writing.data.drain(..taken)),
                    Err(error) => {
                        eprintln!("quiche-peer: stream {stream}: {error}");
                        writing.stopped = true;
                        emit(&Event::StreamEnded { stream, how: "refused", code: None })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells which streams the relay will read no more; quiche forgets it with the stream, once that is read to its end.
    fn notice_stops(&mut self, relay: &mut Connection) -> Outcome {
        for (&stream, writing) in self.writing.iter_mut().filter(|(_, writing)| !writing.stopped) {
            if let Err(quiche::Error::StreamStopped(code)) = relay.stream_capacity(stream) {
                writing.stopped = true;
                emit(&Event::StreamEnded { stream, how: "stopped", code: Some(code) })?;
            }
        }
        Ok(())
    }
}
