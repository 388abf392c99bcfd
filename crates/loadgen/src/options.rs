//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

/// Offers load to a ztna-v1 relay over loopback and prints one JSON object.
#[derive(Parser)]
#[command(name = "ztna-loadgen", version)]
pub struct Options {
    /// The options of every mode.
    #[command(flatten)]
    pub common: Common,
    /// The mode.
    #[command(subcommand)]
    pub mode: Mode,
}

/// The relay, and the identities of its clients.
#[derive(Args)]
pub struct Common {
    /// Address of the relay
    #[arg(long, global = true, default_value = "127.0.0.1:4433")]
    pub server: SocketAddr,
    /// Name the server's certificate must carry
    #[arg(long, global = true, default_value = "ztna-server")]
    pub server_name: String,
    /// PEM file of the CA that signed the server's certificate
    #[arg(long, global = true)]
    pub ca: Option<PathBuf>,
    /// Accept any server: takes the client's verification out of a handshake measurement
    #[arg(long, global = true)]
    pub insecure: bool,
    /// PEM certificate of the clients; `{}` stands for the number of the identity
    #[arg(long, global = true, requires = "key")]
    pub cert: Option<String>,
    /// PEM key of the clients; `{}` stands for the number of the identity
    #[arg(long, global = true, requires = "cert")]
    pub key: Option<String>,
    /// How many identities `--cert` and `--key` name, from 0
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub identities: u32,
    /// How many loopback source addresses the clients use, 127.0.0.1 upwards (IPv4 only)
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=200))]
    pub sources: u8,
    /// Service that agents and the connector register
    #[arg(long, global = true, default_value = "bench")]
    pub service: String,
}

/// The measurements.
#[derive(Subcommand)]
pub enum Mode {
    /// Packets from agents to one connector at a rate
    Relay(Relay),
    /// Round trips through the relay and without it
    Rtt(Rtt),
    /// Full handshakes in a closed loop
    Handshakes(Handshakes),
    /// Registered connections that do nothing until stdin closes
    Idle(Idle),
    /// Offers of agents to connectors, for a direct path
    Signal(Signal),
    /// Connections that signal as nobody should until stdin closes
    Hostile(Hostile),
}

/// Options of `relay`.
#[derive(Args)]
pub struct Relay {
    /// Packets each second over all agents; 0 is as many as the generator can write
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(0..=2_000_000))]
    pub rate: u32,
    /// Bytes of each IP packet
    #[arg(long, default_value_t = 1100, value_parser = clap::value_parser!(u16).range(64..=1300))]
    pub size: u16,
    /// Length of the measured window
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub seconds: u16,
    /// Length of the linear ramp before the window
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=5))]
    pub warmup: u16,
    /// Number of agents that share the rate
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub agents: u16,
    /// Send each packet inside a service-routed datagram (0x2F)
    #[arg(long)]
    pub wrapped: bool,
}

/// Options of `rtt`.
#[derive(Args)]
pub struct Rtt {
    /// Requests each second; repeat the option for several rates
    #[arg(long, default_values_t = [1_000, 20_000], value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub rate: Vec<u32>,
    /// Bytes of each IP packet
    #[arg(long, default_value_t = 1100, value_parser = clap::value_parser!(u16).range(64..=1300))]
    pub size: u16,
    /// Length of each measured window
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10))]
    pub seconds: u16,
    /// PEM certificate of the echo endpoint of the direct baseline, signed by `--ca` for `--server-name`
    #[arg(long)]
    pub echo_cert: PathBuf,
    /// PEM key of the echo endpoint
    #[arg(long)]
    pub echo_key: PathBuf,
}

/// Options of `handshakes`.
#[derive(Args)]
pub struct Handshakes {
    /// Handshakes under way at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub in_flight: u16,
    /// Length of the measured window
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub seconds: u16,
    /// Also register as an agent and wait for the acknowledgement
    #[arg(long)]
    pub register: bool,
}

/// Options of `idle`.
#[derive(Args)]
pub struct Idle {
    /// Connections to open and register
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub connections: u32,
    /// Connections opened each second
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Number of services the connections spread over, each with its own name
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub services: u32,
}

/// Options of `signal`.
#[derive(Args, Clone, Copy)]
pub struct Signal {
    /// Offers each second over all agents
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Number of agents that share the rate
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub agents: u16,
    /// Number of connectors, each with a service of its own
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub connectors: u16,
    /// Length of the measured window
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub seconds: u16,
}

/// Options of `hostile`.
#[derive(Args)]
pub struct Hostile {
    /// Connections: half of them send offers, ten a second each, the others what no relay should take
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(10..=1_000))]
    pub connections: u16,
}
