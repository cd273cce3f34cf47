//! What happened, as a digest of every event and, on demand, as lines for people.

use parking_lot::Mutex;
use std::fmt::{self, Write as _};
use tokio::time::Instant;

/// Events that one world may have: a loop that makes no progress ends here.
const EVENTS_MAX: u64 = 20_000_000;

/// The events of one world, in order. Two runs of a seed are the same run when their digests agree.
pub struct Trace {
    began: Instant,
    state: Mutex<State>,
}

struct State {
    hasher: blake3::Hasher,
    events: u64,
    /// `Some` = lines are kept.
    lines: Option<Vec<String>>,
    text: String,
}

impl Trace {
    /// An empty trace that begins now; `lines` = keep what happens as text too.
    #[must_use]
    pub fn new(lines: bool) -> Self {
        let state = State {
            hasher: blake3::Hasher::new(),
            events: 0,
            lines: lines.then(Vec::new),
            text: String::new(),
        };
        Self { began: Instant::now(), state: Mutex::new(state) }
    }

    /// Milliseconds of virtual time since the world began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// One event: `what` goes into the digest as it is printed.
    ///
    /// # Panics
    /// When the world does not end: more than twenty million events.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let now = self.now_ms();
        let mut s = self.state.lock();
        s.events += 1;
        assert!(s.events < EVENTS_MAX, "the world does not end: {what}");
        let mut text = std::mem::take(&mut s.text);
        text.clear();
        let _ = write!(text, "{now:>7} {what}");
        s.hasher.update(text.as_bytes());
        if let Some(lines) = &mut s.lines {
            lines.push(text.clone());
        }
        s.text = text;
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.state.lock().events
    }

    /// Digest of all events so far.
    #[must_use]
    pub fn digest(&self) -> String {
        self.state.lock().hasher.finalize().to_hex()[..32].to_owned()
    }

    /// The lines kept, if any; takes them out.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.state.lock().lines.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
