//! Health of one store over time.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;
use storenode::wire::Version;
use voter::health::{Event, Health, PROBE_FIRST, PROBE_LONGEST, StoreHealth};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
const AT: Version = Version::new(1, 5);
const ATTACHED: Event = Event::Stands { at: AT, to: AT };

fn up() -> StoreHealth {
    let mut h = StoreHealth::new(ms(0));
    h.on(ATTACHED, ms(0));
    for i in 0..100 {
        h.on(Event::Answered { after: ms(2) }, ms(i));
    }
    h
}

#[test]
fn begins_down_and_is_probed_at_once() {
    let mut h = StoreHealth::new(ms(7));
    assert_eq!((h.health(), h.probe_at()), (Health::Down, Some(ms(7))));
    let t = h.on(ATTACHED, ms(9)).unwrap();
    assert_eq!((t.from, t.to, t.after), (Health::Down, Health::UpToDate, ms(2)));
    assert_eq!(h.probe_at(), None);
}

#[test]
fn a_broken_connection_is_down_and_one_timeout_is_not() {
    let mut h = up();
    assert_eq!(h.on(Event::TimedOut, ms(1000)), None);
    assert!(h.suspected(ms(1000)), "but readers turn away");
    assert!(h.on(Event::TimedOut, ms(1001)).is_some());
    let mut h = up();
    h.on(Event::TimedOut, ms(1000));
    h.on(Event::Answered { after: ms(2) }, ms(1001));
    assert_eq!(h.on(Event::TimedOut, ms(1002)), None, "not in a row");
    let mut h = up();
    assert_eq!(h.on(Event::Unreachable, ms(1000)).unwrap().to, Health::Down);
}

#[test]
fn probes_grow_apart_and_begin_anew() {
    let mut h = up();
    let mut now = ms(1000);
    h.on(Event::Unreachable, now);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let at = h.probe_at().unwrap();
        pauses.push(at - now);
        now = at;
        h.probing(now);
        h.on(Event::Unreachable, now);
    }
    assert_eq!(pauses[0], PROBE_FIRST);
    assert!(pauses.windows(2).all(|w| w[1] == (w[0] * 2).min(PROBE_LONGEST)), "{pauses:?}");
    h.on(ATTACHED, now);
    h.on(Event::Unreachable, now);
    assert_eq!(h.probe_at(), Some(now + PROBE_FIRST));
}

#[test]
fn a_slow_reply_is_suspicious_and_forgiven() {
    let mut h = up();
    h.on(Event::Answered { after: ms(30) }, ms(1000));
    assert!(!h.suspected(ms(1000)), "slower than usual, and still fast");
    h.on(Event::Answered { after: ms(400) }, ms(1000));
    assert!(h.suspected(ms(1001)) && h.suspected(ms(1499)) && !h.suspected(ms(1500)));
    h.overtaken(ms(1500));
    assert!(h.suspected(ms(2400)), "longer the second time");
    h.on(Event::Answered { after: ms(2) }, ms(2600));
    h.overtaken(ms(2700));
    assert!(!h.suspected(ms(3200)), "forgiven after a good reply");
}

/// A bank that is slow by nature is not suspected for being as it always is.
#[test]
fn slow_by_nature_is_usual() {
    let mut h = StoreHealth::new(ms(0));
    h.on(ATTACHED, ms(0));
    for i in 0..100 {
        h.on(Event::Answered { after: ms(80) }, ms(i * 100));
        assert!(!h.suspected(ms(i * 100)));
    }
}

#[test]
fn behind_is_told_once_and_its_progress_is_kept() {
    let mut h = StoreHealth::new(ms(0));
    let behind = |seq| Event::Stands { at: Version::new(1, seq), to: AT };
    assert!(h.on(behind(1), ms(1)).is_some());
    assert_eq!(h.on(behind(3), ms(2)), None);
    assert_eq!(h.health(), Health::Behind { at: Version::new(1, 3), to: AT });
    assert_eq!(h.since(), ms(1));
    assert_eq!(h.on(behind(5), ms(3)).unwrap().to, Health::UpToDate);
}
