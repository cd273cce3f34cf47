//! How much background work may take: a token bucket, and a look at whether anybody else works. Time is
//! an argument, a [`Duration`] since any fixed moment.

use std::time::Duration;

/// Tokens (bytes, records, requests: the caller's unit) that come in at a steady rate.
#[derive(Clone, Debug)]
pub struct Pace {
    per_second: f64,
    burst: f64,
    /// May be negative: a large piece of work is allowed when the bucket is not empty, and paid
    /// off before the next one.
    tokens: f64,
    at: Duration,
}

impl Pace {
    /// A full bucket. `per_second` 0 = never; `burst` is what may be taken at once after idleness.
    #[must_use]
    pub fn new(per_second: u64, burst: u64, now: Duration) -> Self {
        let (per_second, burst) = (per_second as f64, burst.max(1) as f64);
        Self { per_second, burst, tokens: burst, at: now }
    }

    /// Changes the rate, and what may be taken at once, from now on.
    pub fn set(&mut self, per_second: u64, burst: u64, now: Duration) {
        self.refill(now);
        (self.per_second, self.burst) = (per_second as f64, burst.max(1) as f64);
        self.tokens = self.tokens.min(self.burst);
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
    }

    /// Takes `amount` if anything is left, and says how long to wait otherwise. `amount` may be
    /// larger than the burst: then the next call waits longer.
    ///
    /// # Errors
    /// How long to wait before asking again; at most an hour.
    pub fn take(&mut self, amount: u64, now: Duration) -> Result<(), Duration> {
        self.refill(now);
        if self.tokens > 0.0 && self.per_second > 0.0 {
            self.tokens -= amount as f64;
            return Ok(());
        }
        const LONGEST_S: f64 = 3600.0;
        let wait = (1.0 - self.tokens) / self.per_second;
        Err(Duration::from_secs_f64(if wait.is_finite() {
            wait.clamp(1e-6, LONGEST_S)
        } else {
            LONGEST_S
        }))
    }

    /// Work that had to be done anyway: later work pays for it.
    pub fn charge(&mut self, amount: u64, now: Duration) {
        self.refill(now);
        self.tokens -= amount as f64;
    }
}

/// So many requests within so long are somebody at work; a few are left alone.
const BUSY: u64 = 10;
const WITHIN: Duration = Duration::from_millis(100);
/// Who worked just now goes on, or comes again soon: most of what people do is short.
const STILL: Duration = Duration::from_secs(1);

/// Whether people work meanwhile, by a count of what they have asked for.
#[derive(Clone, Debug)]
pub struct Busy {
    at: Duration,
    seen: u64,
    until: Duration,
}

impl Busy {
    /// Somebody is at work when it begins: whoever opens a volume does it for that.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { at: now, seen: 0, until: now + STILL }
    }

    /// `asked`: requests since any fixed moment. Who works is noticed at the first look after the tenth
    /// request, if it is looked at often, and for a second after the last ten.
    pub fn look(&mut self, asked: u64, now: Duration) -> bool {
        if asked.saturating_sub(self.seen) >= BUSY {
            // Between rare looks many requests of a long time add up; that is no work to make way for.
            let passed = now.saturating_sub(self.at).max(WITHIN);
            let rate = (asked - self.seen) as f64 / passed.as_secs_f64();
            if rate * WITHIN.as_secs_f64() >= BUSY as f64 {
                self.until = now + STILL;
            }
            (self.at, self.seen) = (now, asked);
        } else if now.saturating_sub(self.at) >= WITHIN {
            (self.at, self.seen) = (now, asked);
        }
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_whatever_the_pieces() {
        for piece in [1, 7, 100, 5000] {
            let mut pace = Pace::new(1000, 100, Duration::ZERO);
            let (mut now, mut done) = (Duration::ZERO, 0);
            while now < Duration::from_secs(60) {
                match pace.take(piece, now) {
                    Ok(()) => done += piece,
                    Err(wait) => now += wait,
                }
            }
            let most = 60_000 + 100 + piece;
            assert!((59_000..=most).contains(&done), "{done} in pieces of {piece}");
        }
    }

    #[test]
    fn who_works_is_noticed_at_once_and_his_rest_after_a_second() {
        let (mut busy, mut asked) = (Busy::new(Duration::ZERO), 0);
        let mut said = Vec::new();
        for ms in (10..=4000).step_by(10) {
            // 500 a second between 2 and 2.05 s, 10 a second otherwise.
            asked += if (2000..2050).contains(&ms) { 5 } else { u64::from(ms % 100 == 0) };
            said.push((ms, busy.look(asked, Duration::from_millis(ms))));
        }
        assert!(said.iter().all(|(ms, b)| *ms > 1000 || *b == (*ms < 1000)), "whoever opened it");
        said.retain(|(ms, _)| *ms > 1000);
        let first = said.iter().find(|(_, b)| *b).map(|(ms, _)| *ms);
        let last = said.iter().rfind(|(_, b)| *b).map(|(ms, _)| *ms);
        assert!((2000..=2020).contains(&first.unwrap()), "{first:?}");
        assert!((3000..=3060).contains(&last.unwrap()), "{last:?}");
    }

    #[test]
    fn a_little_now_and_then_is_no_work_however_rarely_it_is_looked_at() {
        for every in [1, 10, 100, 1000, 60_000] {
            let mut busy = Busy::new(Duration::ZERO);
            for n in 1..2000 {
                // 50 a second.
                let now = Duration::from_millis(n * every);
                let looked = busy.look(n * every / 20, now);
                assert!(!looked || now < STILL, "{every} ms");
            }
        }
    }

    #[test]
    fn idleness_saves_no_more_than_the_burst() {
        let mut pace = Pace::new(10, 5, Duration::ZERO);
        let now = Duration::from_secs(1000);
        assert_eq!((0..100).filter(|_| pace.take(1, now).is_ok()).count(), 5);
    }

    #[test]
    fn what_was_saved_for_a_large_burst_is_not_spent_at_a_small_rate() {
        let mut pace = Pace::new(1000, 500, Duration::ZERO);
        let now = Duration::from_secs(1);
        pace.set(10, 5, now);
        assert_eq!((0..100).filter(|_| pace.take(1, now).is_ok()).count(), 5);
    }

    #[test]
    fn no_rate_means_never_and_time_running_back_is_harmless() {
        let mut pace = Pace::new(0, 5, Duration::from_secs(9));
        assert_eq!(pace.take(1, Duration::from_secs(1)), Err(Duration::from_secs(3600)));
        pace.set(1, 5, Duration::from_secs(2));
        assert!(pace.take(1, Duration::from_secs(2)).is_ok());
    }
}
