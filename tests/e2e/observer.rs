//! Acceptance S4: a mount that reads beside the one that writes (`tercet mount --observer`).

use crate::REPAIR_MAX;
use cluster::mount::is_mounted;
use cluster::{Bank, Cluster, Mount, Setup, until};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What another host is promised: changes are seen within 2 s. The slack is for a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

fn save(path: &Path, text: &str) {
    let mut file = File::create(path).expect("create");
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).expect("write and sync");
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()).unwrap_or_default())
        .collect();
    names.sort();
    names
}

#[test]
fn an_observer_sees_changes_and_cannot_make_any() {
    let mut cluster = Cluster::start("observer", Setup::default());
    save(&cluster.path("f"), "first");
    fs::create_dir(cluster.path("d")).expect("mkdir");
    let place = cluster.mountpoint().with_file_name("observer");
    let at = place.to_str().expect("UTF-8").to_owned();
    let log = cluster.root.join("observer.log");
    let mut observer =
        Mount::start(&cluster.config(), &place, &["--observer"], &log, Arc::default());
    until(SEEN_WITHIN, "the observer sees what was there", || {
        fs::read_to_string(place.join("f")).is_ok_and(|t| t == "first")
    });

    // Content, names, sizes, times, deletes: seen, in files that are open and in those that are not.
    let open = File::open(place.join("f")).expect("open");
    let began = Instant::now();
    save(&cluster.path("f"), "second, and longer");
    save(&cluster.path("d/new"), "new");
    fs::rename(cluster.path("d/new"), cluster.path("d/renamed")).expect("rename");
    File::open(cluster.path("d")).and_then(|d| d.sync_all()).expect("fsync");
    until(SEEN_WITHIN, "the observer sees it", || {
        fs::read_to_string(place.join("f")).is_ok_and(|t| t == "second, and longer")
            && names(&place.join("d")) == ["renamed"]
    });
    println!("seen after {:?}", began.elapsed());
    let mut text = [0; 18];
    open.read_exact_at(&mut text, 0).expect("read by the old handle");
    assert_eq!(&text, b"second, and longer");
    // A log that grows is followed.
    let mut log = OpenOptions::new().append(true).open(cluster.path("f")).expect("open");
    let mut reader = File::open(place.join("f")).expect("open");
    let mut seen = String::new();
    for n in 0..3 {
        log.write_all(format!("\nline {n}").as_bytes()).and_then(|()| log.sync_all()).expect("log");
        until(SEEN_WITHIN, "the line is seen", || {
            reader.read_to_string(&mut seen).expect("read");
            seen.ends_with(&format!("line {n}"))
        });
    }

    // It can change nothing, and says so.
    for refused in [
        fs::write(place.join("f"), "mine"),
        fs::remove_file(place.join("f")),
        fs::create_dir(place.join("e")),
    ] {
        assert_eq!(refused.map_err(|e| e.kind()), Err(io::ErrorKind::ReadOnlyFilesystem));
    }
    let said = cluster.tercet(&["mount", "-o", "remount,rw", &at]);
    assert!(!said.ok(), "an observer became writable: {said}");

    // Whatever bank is away: it reads on, and so does the writer.
    for bank in Bank::ALL {
        cluster.kill(bank);
        save(&cluster.path("f"), &format!("without {bank:?}"));
        until(SEEN_WITHIN, "seen with a bank dead", || {
            fs::read_to_string(place.join("f")).is_ok_and(|t| t == format!("without {bank:?}"))
        });
        cluster.start_bank(bank);
        cluster.await_healthy(REPAIR_MAX);
    }
    // The writer dies and another comes; the observer stays.
    cluster.kill_mount();
    assert_eq!(fs::read_to_string(place.join("f")).expect("read without a writer"), "without C");
    cluster.mount();
    fs::remove_file(cluster.path("f")).expect("unlink");
    File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    until(SEEN_WITHIN, "the deletion is seen", || {
        File::open(place.join("f")).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    });
    drop((open, reader));
    cluster.tercet(&["umount", &at]).assert_ok();
    assert!(!is_mounted(&place), "umount returned before the end");
    // It has let go of everything by now; to be gone from the process table takes it a moment more.
    until(SEEN_WITHIN, "its process has ended", || !observer.is_running());
    cluster.await_whole(REPAIR_MAX);
    let said = cluster.tercet(&["check", "--data"]);
    assert!(said.ok(), "{said}");
}
