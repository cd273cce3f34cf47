//! A segment that was compacted away gives its space back step by step; who still reads in it, reads
//! all of what he asked for.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(unreachable_pub)]
mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use storenode::disk::MemoryDisk;
use storenode::service::Service;
use storenode::wire::*;
use support::wrapped::{Watcher, Wrapped};
use support::*;

const VALUE: usize = 64 << 10;

struct Gate {
    /// The next read of a value's length waits at both barriers.
    armed: AtomicBool,
    /// The next removal of a segment does.
    remove_armed: AtomicBool,
    cuts: AtomicUsize,
    /// Name of a file of which nothing can be read.
    unreadable: Mutex<String>,
    arrived: Barrier,
    go_on: Barrier,
}

impl Watcher for Gate {
    fn reading(&self, name: &str, len: usize) -> std::io::Result<()> {
        if len == VALUE && self.armed.swap(false, SeqCst) {
            self.arrived.wait();
            self.go_on.wait();
        }
        if *self.unreadable.lock().unwrap() == name {
            return Err(std::io::Error::other("a bad sector"));
        }
        Ok(())
    }
    fn removing(&self, name: &str) {
        if name.ends_with(".seg") && self.remove_armed.swap(false, SeqCst) {
            self.arrived.wait();
            self.go_on.wait();
        }
    }
    fn cutting(&self) {
        self.cuts.fetch_add(1, SeqCst);
    }
}

/// A store whose first segment of 16 MiB is to be compacted: all but the last keys were written again.
fn aged() -> (Node, Arc<Gate>, Version) {
    let (arrived, go_on) = (Barrier::new(2), Barrier::new(2));
    let (armed, cuts) = (AtomicBool::new(false), AtomicUsize::new(0));
    let remove_armed = AtomicBool::new(false);
    let unreadable = Mutex::default();
    let gate = Arc::new(Gate { armed, remove_armed, cuts, unreadable, arrived, go_on });
    let disk = MemoryDisk::new();
    let config = config(16 << 20);
    let on = Arc::new(Wrapped(disk.clone(), Arc::clone(&gate)));
    let service = Service::open(on, config).unwrap();
    let mut n = Node { disk, service, epoch: 0, segment_bytes: 16 << 20 };
    n.assign(Role::Voter);
    n.take(1);
    let mut seq = 0;
    for (round, keys) in [(1, 0..240u64), (2, 0..236), (3, 0..236)] {
        for key in keys {
            seq += 1;
            n.write(seq, &vec![put(format!("k{key:03}").as_bytes(), &vec![round; VALUE])]).unwrap();
        }
    }
    n.commit(v(1, seq));
    n.tick();
    (n, gate, v(1, seq))
}

#[test]
fn space_of_a_removed_segment_is_given_back_in_steps() {
    let (n, gate, _) = aged();
    let gone = || n.service.metrics().segments_compacted;
    let mut calls = 0;
    while gone() == 0 {
        n.service.maintain();
        calls += 1;
        assert!(calls < 100, "never compacted");
    }
    for step in 1..=16 {
        let before = gate.cuts.load(SeqCst);
        assert!(n.service.maintain());
        let cuts = gate.cuts.load(SeqCst) - before;
        // 16 MiB at 1 MiB each; the last of it goes with the file.
        assert_eq!(cuts, usize::from(step < 16), "step {step}");
        assert_eq!(gone(), 1, "the next one waits");
    }
}

#[test]
fn a_segment_that_cannot_be_read_keeps_no_other_from_being_compacted() {
    let (n, gate, top) = aged();
    let segments = || n.log_files().into_iter().filter(|f| f.ends_with(".seg")).collect::<Vec<_>>();
    let first = segments().remove(0);
    *gate.unreadable.lock().unwrap() = first.clone();
    let maintain_until = |compacted: u64| {
        for _ in 0..1_000 {
            n.service.maintain();
            if n.service.metrics().segments_compacted >= compacted {
                return;
            }
        }
        panic!("{compacted} never compacted: {:?}", segments());
    };
    maintain_until(1);
    assert!(segments().contains(&first));
    gate.unreadable.lock().unwrap().clear();
    maintain_until(2);
    assert!(!segments().contains(&first));
    assert_eq!(n.read(b"k239", top).unwrap().1.unwrap(), vec![1u8; VALUE]);
}

#[test]
fn who_reads_in_a_segment_while_it_is_removed_reads_all_of_it() {
    let (n, gate, top) = aged();
    std::thread::scope(|s| {
        gate.armed.store(true, SeqCst);
        // In the first segment, at its end.
        let reader = s.spawn(|| n.read(b"k239", top).unwrap());
        gate.arrived.wait();
        n.maintain();
        assert!(n.service.metrics().segments_compacted > 0);
        gate.go_on.wait();
        let (found, value) = reader.join().unwrap();
        assert!(matches!(found, Found::Record { .. }), "{found:?}");
        assert!(value.unwrap() == vec![1u8; VALUE]);
    });
}

/// The old log's background work removes a segment by its name; the new log has one of the same name.
#[test]
fn a_store_that_is_made_anew_while_a_segment_is_removed_keeps_its_own() {
    let (n, gate, _) = aged();
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::scope(|s| {
        gate.remove_armed.store(true, SeqCst);
        let maintenance = s.spawn(|| n.maintain());
        gate.arrived.wait();
        let wipe = s.spawn(|| {
            n.wipe(|| ()).unwrap();
            n.attach(Vec::new()).unwrap();
            let value = Some(bytes::Bytes::from_static(b"copied"));
            let records = [(b"k".to_vec(), v(1, 2), value)];
            assert_eq!(n.install(&records, v(1, 2), InstallKind::CatchUp), Ok(1));
            said.send(()).unwrap();
        });
        // It waits for the removal. Were it not to, it would be over by then.
        let early = heard.recv_timeout(std::time::Duration::from_millis(300));
        gate.go_on.wait();
        wipe.join().unwrap();
        maintenance.join().unwrap();
        assert!(early.is_err(), "the store was made anew beside the removal");
    });
    assert!(n.disk.content("log-00000001.seg").is_some(), "{:?}", n.log_files());
}
