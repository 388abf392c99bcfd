//! `ztna-loadgen`: agents and connectors that offer traffic to a relay and count what comes back.
//!
//! Each mode prints one JSON object on stdout and its progress on stderr. Lines on stderr that begin with `@` are marks
//! for the driver (`@begin`, `@end`, `@ready`): it reads the server's CPU time and memory at those moments, because the
//! generator alone knows when a window opens.

mod handshakes;
mod hostile;
mod idle;
mod options;
mod packet;
mod peer;
mod relay;
mod rtt;
mod signal;
mod stats;
mod tls;
mod transport;
mod usage;

use clap::Parser;
use options::{Mode, Options};
use serde_json::Value;

/// The error of any mode; its text is for the person who started the run.
type Failure = Box<dyn std::error::Error>;

async fn run(options: &Options) -> Result<Value, Failure> {
    match &options.mode {
        Mode::Relay(mode) => relay::run(&options.common, mode).await,
        Mode::Rtt(mode) => rtt::run(&options.common, mode).await,
        Mode::Handshakes(mode) => handshakes::run(&options.common, mode).await,
        Mode::Idle(mode) => idle::run(&options.common, mode).await,
        Mode::Signal(mode) => signal::run(&options.common, mode).await,
        Mode::Hostile(mode) => hostile::run(&options.common, mode).await,
    }
}

fn main() -> std::process::ExitCode {
    let options = Options::parse();
    // One thread: the generator owns one core, as the server owns the other, and its own use is easy to read.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(run(&options));
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(report) => {
            println!("{report}");
            std::process::ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("ztna-loadgen: {failure}");
            std::process::ExitCode::FAILURE
        }
    }
}
