//! The agent's side of one direct path: wait for the start, probe, connect, keep alive. No IO, no clock.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    control::Step,
    direct::punch::Punch,
    wire::{Candidate, KEEPALIVE, PROBE},
};

/// How long an agent waits for StartPunching.
const START: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The state of the path, and how it is kept.
pub struct Agent {
    state: State,
    /// Between two keepalives.
    keepalive: Duration,
    /// How long a keepalive may be unanswered.
    patience: Duration,
}

enum State {
    Off,
    Waiting {
        session: u64,
        until: Instant,
    },
    Punching(Punch),
    Connecting {
        remote: SocketAddr,
        until: Instant,
    },
    /// `unanswered` has the last nonce, and when the first keepalive without an answer left.
    Up {
        remote: SocketAddr,
        next: Instant,
        unanswered: Option<([u8; 4], Instant)>,
    },
}

/// What [`Agent::turn`] asks for.
#[derive(Default)]
pub struct Turn {
    /// UDP payloads to send: probes with the place of their candidate, and what goes to where QUIC goes.
    pub packets: Vec<(Option<usize>, SocketAddr, Vec<u8>)>,
    /// What to tell the test.
    pub step: Option<(Step, Option<SocketAddr>)>,
}

impl Agent {
    /// An agent that has offered nothing.
    pub fn new(keepalive: Duration, patience: Duration) -> Self {
        Self { state: State::Off, keepalive, patience }
    }

    /// The offer has been sent.
    pub fn offered(&mut self, session: u64, now: Instant) {
        self.state = State::Waiting { session, until: now + START };
    }

    /// The relay lets it begin; false where that is not what it waits for.
    pub fn start(
        &mut self,
        of: u64,
        candidates: Vec<Candidate>,
        at: Instant,
        random: impl FnMut() -> [u8; 12],
    ) -> bool {
        let awaited = matches!(self.state, State::Waiting { session, .. } if session == of);
        if awaited {
            self.state = State::Punching(Punch::new(candidates, at, random));
        }
        awaited
    }

    /// A probe was answered; true where the connector is to be connected to at `from`.
    pub fn answered(&mut self, transaction: [u8; 12], from: SocketAddr, now: Instant) -> bool {
        let first = matches!(&self.state, State::Punching(punch) if punch.expects(transaction));
        if first {
            self.state = State::Connecting { remote: from, until: now + HANDSHAKE };
        }
        first
    }

    /// The connection is established.
    pub fn connected(&mut self, to: SocketAddr, now: Instant) {
        if matches!(self.state, State::Connecting { remote, .. } if remote == to) {
            self.state = State::Up { remote: to, next: now + self.keepalive, unanswered: None };
        }
    }

    /// A keepalive was answered.
    pub fn kept_alive(&mut self, nonce: [u8; 4]) {
        if let State::Up { unanswered, .. } = &mut self.state {
            unanswered.take_if(|(last, _)| *last == nonce);
        }
    }

    /// The connection is over.
    pub fn closed(&mut self, with: SocketAddr) {
        let connecting = matches!(self.state, State::Connecting { remote, .. } if remote == with);
        if connecting || self.remote() == Some(with) {
            self.state = State::Off;
        }
    }

    /// Where packets are sent to directly.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self.state {
            State::Up { remote, .. } => Some(remote),
            _ => None,
        }
    }

    /// When [`Self::turn`] has something to do.
    pub fn next(&self) -> Option<Instant> {
        match &self.state {
            State::Off => None,
            State::Waiting { until, .. } | State::Connecting { until, .. } => Some(*until),
            State::Punching(punch) => Some(punch.next()),
            State::Up { unanswered: Some((_, since)), next, .. } => {
                Some((*since + self.patience).min(*next))
            }
            State::Up { next, .. } => Some(*next),
        }
    }

    /// Does what is due; `random` gives the nonce of a keepalive.
    pub fn turn(&mut self, now: Instant, random: impl FnOnce() -> [u8; 4]) -> Turn {
        let mut turn = Turn::default();
        match &mut self.state {
            State::Waiting { until, .. } if *until <= now => {
                turn.step = Some((Step::NoStart, None));
            }
            State::Punching(punch) if punch.over(now) => {
                turn.step = Some((Step::NoAnswer, None));
            }
            State::Punching(punch) => {
                for (at, to, probe) in punch.due(now) {
                    turn.packets.extend(probe.encode().ok().map(|packet| (Some(at), to, packet)));
                }
            }
            State::Connecting { remote, until } if *until <= now => {
                turn.step = Some((Step::Failed, Some(*remote)));
            }
            State::Up { remote, unanswered: Some((_, since)), .. }
                if *since + self.patience <= now =>
            {
                turn.step = Some((Step::Lost, Some(*remote)));
            }
            State::Up { remote, next, unanswered } if *next <= now => {
                let nonce = random();
                *next = now + self.keepalive;
                let since = unanswered.map_or(now, |(_, since)| since);
                *unanswered = Some((nonce, since));
                let packet = [&[PROBE, KEEPALIVE], &nonce[..]].concat();
                turn.packets.push((None, *remote, packet));
            }
            _ => {}
        }
        if turn.step.is_some() {
            self.state = State::Off;
        }
        turn
    }
}
