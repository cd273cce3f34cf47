//! S2 with dockerd: its data root on the mount, and its own restarts.

use crate::in_all_weathers;
use crate::lab::{Lab, Weather};
use crate::roots::{PAGE, SMALL_ROOT};

/// `dockerd` without firewall and bridge (neither concerns the filesystem), and its client.
const OPERATOR: &str = r#"
D="docker -H unix:///run/docker-test.sock"
daemon() {
    dockerd --data-root $M/docker --exec-root /run/docker-test -p /run/docker-test.pid -H unix:///run/docker-test.sock \
        -s $DRIVER --iptables=false --bridge=none --cgroup-parent /tercet-test-docker >>$W/dockerd.log 2>&1 </dev/null &
    for _ in $(seq 150); do ! $D info >/dev/null 2>&1 || return 0; sleep 0.2; done
    tail -20 $W/dockerd.log >&2; return 1
}
ended() { while [ -e /proc/$1 ]; do sleep 0.1; done; }
serve() { $D run -d --restart always --network host --name "$1" "$2" /bin/busybox httpd -f -p "$3" -h /www >/dev/null; }
"#;

in_all_weathers!(overlay2, with_overlay2);

fn with_overlay2(weather: Weather) {
    versions(weather, "overlay2", "overlay");
}

/// Full copies instead of layers: once is enough, the calls are those of podman's `vfs`.
#[test]
fn vfs() {
    versions(Weather::Fair, "vfs", "fuse.tercet");
}

fn versions(weather: Weather, driver: &str, root_type: &str) {
    let mut lab = Lab::open(&format!("docker-{driver}"), weather);
    let sh = |lab: &Lab, script: &str| {
        lab.with(&format!("DRIVER={driver}\n{OPERATOR}{PAGE}{SMALL_ROOT}"), script)
    };
    sh(
        &lab,
        "small_root $W/root; tar -C $W/root -cf $W/root.tar .; daemon; $D import $W/root.tar site:v1 >/dev/null",
    );
    lab.turn();
    sh(&lab, "serve one site:v1 8081; page localhost:8081 v1");
    let kind = sh(&lab, "$D exec one /bin/grep ' / ' /proc/mounts | cut -d' ' -f3");
    assert_eq!(kind.trim(), root_type, "the root filesystem that a container sees");
    sh(&lab, "$D exec one /bin/sh -c 'echo v2 >/www/index.html; rm /bin/rm; touch /bin/privileged; mv /opt /old'
        page localhost:8081 v2; $D commit one site:v2 >/dev/null");
    lab.turn();
    sh(&lab, "serve two site:v2 8082; serve old site:v1 8083; page localhost:8082 v2; page localhost:8083 v1
        sleep 1; mkdir $W/b; printf 'FROM site:v2\\nRUN echo v3 >/www/index.html && chown -R 1000 /www\\nUSER 1000\\n' >$W/b/Dockerfile
        $D build -q --network host -t site:v3 $W/b >/dev/null
        [ \"$($D run --rm --network none site:v3 /bin/sh -c 'cat /www/index.html; [ ! -e /bin/rm ] && [ ! -e /opt ] && [ -e /old/file ] && [ -u /bin/privileged ] && id -u')\" = \"$(printf 'v3\\n1000')\" ]");
    lab.turn();
    // The daemon restarts, once in good order and once not; its containers come back.
    for signal in ["TERM", "KILL"] {
        sh(&lab, &format!(
            "d=$(cat /run/docker-test.pid); kill -{signal} $d; ended $d
             for c in $(pgrep -f ^containerd.*docker-test || true); do kill -{signal} $c; ended $c; done
             rm -f /run/docker-test.pid /run/docker-test/containerd/containerd.pid; daemon
             page localhost:8082 v2; page localhost:8083 v1; page localhost:8081 v2"));
        lab.turn();
    }
    sh(&lab, "$D save -o $W/v3.tar site:v3; $D rmi -f site:v3 >/dev/null; $D rm -f one old >/dev/null; $D load -q -i $W/v3.tar >/dev/null
        page localhost:8082 v2; [ \"$($D run --rm --network none site:v3 /bin/cat /www/index.html)\" = v3 ]
        d=$(cat /run/docker-test.pid); kill $d; ended $d");
    lab.close(|lab| {
        sh(lab, "daemon; page localhost:8082 v2; [ \"$($D run --rm --network none site:v3 /bin/cat /www/index.html)\" = v3 ]
            $D rm -f two >/dev/null; $D system prune -a -f >/dev/null; [ -z \"$($D images -q)\" ]; d=$(cat /run/docker-test.pid); kill $d; ended $d
            find /sys/fs/cgroup -depth -type d -path '*tercet-test-docker*' -exec rmdir {} + 2>/dev/null || true");
    });
}
