//! A ztna-v1 client on quiche 0.22 that a test drives by JSON lines.
//!
//! One process is one connection to a relay, and the direct ones beside it. Commands come on stdin
//! ([`control::Command`]), events go to stdout ([`control::Event`]). The end of stdin ends the process without
//! a CONNECTION_CLOSE, as a client that was killed would.

mod backend;
mod control;
mod direct;
mod echo;
mod options;
mod peer;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = options::Options::parse(std::env::args().skip(1))
        .and_then(|options| peer::Peer::start(&options))
        .and_then(|mut peer| peer.run());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quiche-peer: {error}");
            ExitCode::FAILURE
        }
    }
}
