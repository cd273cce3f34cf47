//! Health of one store, as a person would say it: events in, transitions out. Time is an argument,
//! a [`Duration`] since any fixed moment.
//!
//! A store that does not answer is `Down` at once for new requests (so that an operation pays for
//! it at most once) and is probed with growing pauses. A store that answers late is `suspected`:
//! still up to date and still written to, but readers ask the others first.

use std::time::Duration;
use storenode::wire::Version;

/// First pause before a probe of a store that is down.
pub const PROBE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between probes.
pub const PROBE_LONGEST: Duration = Duration::from_secs(2);
/// Timeouts in a row after which a store is down; a broken connection counts at once.
pub const TIMEOUTS_DOWN: u32 = 2;
/// A reply slower than this, and slower than [`SLOW_FACTOR`] times the usual, is suspicious.
pub const SLOW_FLOOR: Duration = Duration::from_millis(50);
/// See [`SLOW_FLOOR`].
pub const SLOW_FACTOR: u32 = 8;
/// How long readers avoid a store after a suspicious reply; doubles while it goes on.
pub const SUSPECT_FIRST: Duration = Duration::from_millis(500);
/// Longest time that readers avoid a store without trying it again.
pub const SUSPECT_LONGEST: Duration = Duration::from_secs(10);

/// How a store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Attached and contiguous through what was sent, but for what is in flight.
    UpToDate,
    /// Answers, and lacks groups up to `to`.
    Behind {
        /// Its position.
        at: Version,
        /// Where the others are.
        to: Version,
    },
    /// A new store that is being filled.
    Filling,
    /// Does not answer, or says that it failed.
    Down,
}

impl Health {
    /// For people.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::UpToDate => "up to date",
            Self::Behind { .. } => "behind",
            Self::Filling => "filling",
            Self::Down => "down",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// It answered anything, after this time.
    Answered {
        /// Round trip.
        after: Duration,
    },
    /// No answer within a deadline.
    TimedOut,
    /// No connection, or it broke.
    Unreachable,
    /// It answered that it cannot (failed disk, damaged state), or garbled things.
    Failed,
    /// A probe found it and it was attached; it stands at `at`, the others at `to`.
    Stands {
        /// Its position.
        at: Version,
        /// Where the others are.
        to: Version,
    },
    /// It is a store that is being filled.
    IsFilling,
}

/// A change worth telling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    /// Before.
    pub from: Health,
    /// Now.
    pub to: Health,
    /// How long it was in the state before.
    pub after: Duration,
}

/// The state machine of one store.
#[derive(Clone, Debug)]
pub struct StoreHealth {
    health: Health,
    since: Duration,
    away_since: Duration,
    timeouts: u32,
    probe_pause: Duration,
    probe_at: Duration,
    usual: Option<Duration>,
    suspected_until: Duration,
    suspicion: Duration,
}

impl StoreHealth {
    /// Begins down, to be probed at once.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            health: Health::Down,
            since: now,
            away_since: now,
            timeouts: 0,
            probe_pause: PROBE_FIRST,
            probe_at: now,
            usual: None,
            suspected_until: Duration::ZERO,
            suspicion: SUSPECT_FIRST,
        }
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }

    /// When it was last up to date, or else when it began to be watched.
    #[must_use]
    pub fn away_since(&self) -> Duration {
        self.away_since
    }

    /// Usual round trip; `None` before the first answer.
    #[must_use]
    pub fn usual(&self) -> Option<Duration> {
        self.usual
    }

    /// Takes one event; returns the transition if the state changed.
    pub fn on(&mut self, event: Event, now: Duration) -> Option<Transition> {
        match event {
            Event::Answered { after } => {
                self.timeouts = 0;
                self.weigh(after, now);
                None
            }
            Event::TimedOut => {
                self.timeouts += 1;
                self.suspect(now);
                if self.timeouts >= TIMEOUTS_DOWN || self.health == Health::Down {
                    return self.down(now);
                }
                None
            }
            Event::Unreachable | Event::Failed => self.down(now),
            Event::Stands { at, to } => {
                self.timeouts = 0;
                self.probe_pause = PROBE_FIRST;
                let health = if at >= to { Health::UpToDate } else { Health::Behind { at, to } };
                self.become_(health, now)
            }
            Event::IsFilling => {
                self.timeouts = 0;
                self.probe_pause = PROBE_FIRST;
                self.become_(Health::Filling, now)
            }
        }
    }

    fn down(&mut self, now: Duration) -> Option<Transition> {
        if self.health == Health::Down {
            // A probe failed: the next one later.
            self.probe_pause = (self.probe_pause * 2).min(PROBE_LONGEST);
        } else {
            self.probe_pause = PROBE_FIRST;
        }
        self.probe_at = now + self.probe_pause;
        self.become_(Health::Down, now)
    }

    fn become_(&mut self, health: Health, now: Duration) -> Option<Transition> {
        let from = std::mem::replace(&mut self.health, health);
        if from == Health::UpToDate {
            self.away_since = now;
        }
        // Progress of one that is behind is not a change of state.
        if std::mem::discriminant(&from) == std::mem::discriminant(&health) {
            return None;
        }
        let after = now.saturating_sub(self.since);
        self.since = now;
        Some(Transition { from, to: health, after })
    }

    /// Keeps the usual round trip (a slow average) and suspects what is far slower.
    fn weigh(&mut self, after: Duration, now: Duration) {
        let usual = self.usual.unwrap_or(after);
        if after > SLOW_FLOOR && after > usual * SLOW_FACTOR {
            self.suspect(now);
        } else if now >= self.suspected_until {
            self.suspicion = SUSPECT_FIRST;
        }
        self.usual = Some((usual * 15 + after) / 16);
    }

    fn suspect(&mut self, now: Duration) {
        if now < self.suspected_until {
            return;
        }
        self.suspected_until = now + self.suspicion;
        self.suspicion = (self.suspicion * 2).min(SUSPECT_LONGEST);
    }

    /// Another bank answered and this one did not, after a hedged read waited for it: readers turn
    /// away from it for a while.
    pub fn overtaken(&mut self, now: Duration) {
        self.suspect(now);
    }

    /// Readers should ask others first.
    #[must_use]
    pub fn suspected(&self, now: Duration) -> bool {
        now < self.suspected_until
    }

    /// When to probe it; `None` unless it is down.
    #[must_use]
    pub fn probe_at(&self) -> Option<Duration> {
        (self.health == Health::Down).then_some(self.probe_at)
    }

    /// A probe begins: the next one is due only after a pause, whatever becomes of this one.
    pub fn probing(&mut self, now: Duration) {
        self.probe_at = now + self.probe_pause;
    }
}
