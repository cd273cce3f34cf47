//! Root filesystems, made on this machine: no image registry is asked.

use cluster::process::run;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A Debian root filesystem of the machine's own release, as a tar file: about 10,000 entries with
/// systemd and nginx. Made once by mmdebstrap from the machine's own package sources, and kept in
/// `target/tmp`.
pub(crate) fn debian() -> PathBuf {
    let tar = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian.tar");
    if !tar.exists() {
        let script = r#"
            . /etc/os-release; sources=/etc/apt/sources.list.d/debian.sources
            [ -e $sources ] || sources=/etc/apt/sources.list
            mkdir -p "${1%/*}"; TMPDIR=/dev/shm mmdebstrap --variant=minbase --format=tar \
                --include=systemd-sysv,iproute2,nginx-light,iputils-ping,libcap2-bin,procps \
                "$VERSION_CODENAME" "$1.new" "$sources" 2>&1 || TMPDIR= mmdebstrap --variant=minbase --format=tar \
                --include=systemd-sysv,iproute2,nginx-light,iputils-ping,libcap2-bin,procps \
                "$VERSION_CODENAME" "$1.new" "$sources" 2>&1
            mv "$1.new" "$1""#;
        let mut command = Command::new("bash");
        command.args(["-euc", script, "bash"]).arg(&tar);
        run(&mut command, Duration::from_secs(580)).assert_ok();
    }
    tar
}

/// Shell function `small_root DIR`: busybox, a user, and a page that says `v1`. Two megabytes.
///
/// The page is an hour old: where podman and docker find changes by comparing trees (`vfs`), a file of
/// the same size is unchanged to them if its time is in the same second as one that a tar brought.
pub(crate) const SMALL_ROOT: &str = r#"
small_root() {
    mkdir -p "$1"/bin "$1"/etc "$1"/www "$1"/opt "$1"/proc "$1"/sys "$1"/dev "$1"/data; mkdir -m 1777 "$1"/tmp
    cp "$(command -v busybox)" "$1"/bin/busybox
    for name in sh ls cat echo httpd sleep rm mkdir id grep sed touch mv chown chmod stat; do ln -s busybox "$1"/bin/$name; done
    cp /bin/busybox "$1"/bin/privileged; chown 0:42 "$1"/bin/privileged; chmod 6755 "$1"/bin/privileged
    echo kept >"$1"/opt/file; echo v1 >"$1"/www/index.html; touch -d '1 hour ago' "$1"/www/index.html
    printf 'root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n' >"$1"/etc/passwd
}
"#;

/// Shell function `page ADDRESS WANTED`: waits up to 10 s for a page that says so.
pub(crate) const PAGE: &str = r#"
page() {
    for _ in $(seq 100); do
        got=$(curl -s -m 2 "http://$1/" || true); [ "$got" != "$2" ] || return 0; sleep 0.1
    done
    echo "http://$1/ says '$got', not '$2'" >&2; return 1
}
"#;
