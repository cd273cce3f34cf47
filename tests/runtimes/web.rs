//! S2: a document root on the mount, under load.

use crate::lab::{Lab, Weather};
use crate::{REPAIR_MAX, in_all_weathers};
use cluster::oracle::holdings;
use cluster::tree::sha256;
use cluster::{Bank, Random, until};
use std::time::Duration;

/// nginx and apache on one document root, `$M/site/current`, a link to a version of it; both append to
/// one access log on the mount.
const OPERATOR: &str = r#"
nginx_up() {
    printf 'worker_processes 2; pid /run/nginx.pid; error_log /run/nginx.err; events {}
        http { sendfile on; open_file_cache off; access_log %s/nginx.log; root %s/site/current;
               server { listen 8090; location / { } location /direct/ { directio 512; alias %s/site/current/; } } }' $M $M $M >/run/nginx.conf
    nginx -c /run/nginx.conf
}
apache_up() {
    mods=/usr/lib/apache2/modules
    printf 'ServerRoot /run\nPidFile /run/apache.pid\nErrorLog /run/apache.err\nServerName localhost\nListen 8091
        LoadModule mpm_event_module %s/mod_mpm_event.so\nLoadModule authz_core_module %s/mod_authz_core.so
        EnableSendfile On\nEnableMMAP On\nLogFormat "%%r" short\nCustomLog %s/apache.log short\nUser nobody
        DocumentRoot %s/site/current\n<Directory %s/site>\nOptions FollowSymLinks\nRequire all granted\n</Directory>\n' \
        $mods $mods $M $M $M >/run/apache.conf
    apache2 -f /run/apache.conf
}
# Fetches every file of the list again and again, dropping it from the page cache first, until $W/enough
# is there; notes every body that does not hash to what the list, kept outside, says.
check_bodies() {
    while [ ! -e $W/enough ]; do
        while read -r sum name; do
            [ -z "$2" ] || dd if=$M/site/current/$name iflag=nocache count=0 status=none || echo "dd $name" >>$W/wrong
            got=$(curl -s -m 10 "http://localhost:$1/$name" | sha256sum | cut -d' ' -f1)
            [ $got = $sum ] || echo "$1 $name: $got, not $sum" >>$W/wrong; echo . >>$W/checked
        done <$W/sums
    done
}
"#;

/// Pages of the site.
const FILES: u64 = 40;

in_all_weathers!(a_site_under_load, site);

fn site(weather: Weather) {
    let mut lab = Lab::open("web", weather);
    let mut random = Random::from_env("web");
    let v1 = lab.outside("v1");
    std::fs::create_dir(&v1).expect("mkdir");
    let mut sums = String::new();
    for n in 0..FILES {
        // From pages to pictures.
        let len = if n % 8 == 0 { 3 << 20 } else { 1 + random.below(60_000) };
        let body = random.bytes(usize::try_from(len).unwrap_or(0));
        std::fs::write(v1.join(format!("f{n}")), &body).expect("write");
        sums += &format!("{} f{n}\n", sha256(&body));
    }
    std::fs::write(lab.outside("sums"), sums).expect("write");
    std::fs::write(v1.join("index.html"), "v1\n").expect("write");
    let sh = |lab: &Lab, script: &str| lab.with(OPERATOR, script);
    sh(
        &lab,
        r#"mkdir -m 755 $M/site; chmod 755 $M/.. $M; cp -r $W/v1 $M/site/v1; cp -r $W/v1 $M/site/v2; echo v2 >$M/site/v2/index.html
        ln -s v1 $M/site/current; nginx_up; apache_up
        for p in 8090 8091; do for _ in $(seq 50); do ! curl -sf localhost:$p/index.html >/dev/null || break; sleep 0.1; done; [ "$(curl -s localhost:$p/index.html)" = v1 ] || { curl -si localhost:$p/index.html; cat /run/*.err; exit 1; }; done"#,
    );
    let loads = [
        (
            "wrk",
            "wrk -c 16 -t 2 -d 3600 http://localhost:8090/index.html & p=$!; while [ ! -e $W/enough ]; do sleep 0.1; done; kill -INT $p; wait $p",
        ),
        ("ab", "while [ ! -e $W/enough ]; do ab -q -l -n 2000 -c 4 http://localhost:8091/f1; done"),
        ("bodies", "check_bodies 8090 cold"),
        ("direct", "check_bodies 8090/direct cold"),
        ("apache", "check_bodies 8091 ''"),
    ];
    let loads = loads.map(|(name, words)| lab.host().spawn(name, &format!("{OPERATOR}\n{words}")));
    // Switched under load: a link is replaced by rename, and nobody sees neither version.
    for n in 0..6 {
        lab.turn();
        let version = if n % 2 == 0 { "v2" } else { "v1" };
        sh(
            &lab,
            &format!(
                "ln -s {version} $M/site/new; mv -T $M/site/new $M/site/current; sleep 2
             for p in 8090 8091; do [ $(curl -s localhost:$p/index.html)x = {version}x ]; done"
            ),
        );
    }
    lab.calm_down();
    // Something served is damaged on one bank while a node of another is dead.
    let mut corrupted = 0;
    for node in lab.cluster.bank(Bank::B) {
        for key in holdings(node).expect("keys").keys().take(80) {
            corrupted += u64::from(node.ask(&["corrupt", key]).ok());
        }
    }
    assert!(corrupted > 100, "{corrupted} records corrupted");
    println!("{corrupted} records corrupted on bank B");
    lab.cluster.node(Bank::A, 0).kill();
    std::thread::sleep(Duration::from_secs(5));
    lab.cluster.node(Bank::A, 0).start();
    std::thread::sleep(Duration::from_secs(1));
    lab.sh("touch $W/enough; while pgrep -x wrk || pgrep -x ab || pgrep -x curl; do sleep 0.2; done >/dev/null; sleep 0.5");
    drop(loads);
    let said = lab.ask("if [ -e $W/wrong ]; then head -20 $W/wrong; fi; wc -l <$W/checked");
    println!("bodies checked: {said}");
    assert!(said.trim().parse::<u64>().is_ok_and(|n| n > 3 * FILES), "wrong bodies: {said}");
    let log = |name: &str| {
        let text = std::fs::read_to_string(lab.cluster.root.join(format!("run/{name}.log")));
        text.expect("a log")
    };
    let wrk = log("wrk");
    println!("{wrk}");
    assert!(wrk.contains("Requests/sec"), "{wrk}");
    assert!(!wrk.contains("Non-2xx") && !wrk.contains("Socket errors"), "{wrk}");
    let ab = log("ab");
    assert!(ab.contains("Complete requests:      2000"), "{ab}");
    assert!(
        ab.lines().filter(|l| l.starts_with("Failed requests:")).all(|l| l.ends_with(" 0")),
        "{ab}"
    );
    assert!(!ab.contains("Non-2xx"), "{ab}");
    // Every request is one line of the log, none is cut.
    sh(&lab, "kill $(cat /run/nginx.pid) $(cat /run/apache.pid); while pgrep -x nginx || pgrep -x apache2; do sleep 0.1; done >/dev/null
        ! grep -avE '^(127.0.0.1|::1) .* HTTP/1.[01]\" (200|206) ' $M/nginx.log | head -5 | grep .
        ! grep -avE '^GET /.* HTTP/1.[01]$' $M/apache.log | head -5 | grep .");
    // What nobody read meanwhile is healed by a refresh.
    lab.calm_down();
    let _ = lab.cluster.tercet(&["refresh"]);
    until(REPAIR_MAX, "what was damaged is healed", || {
        lab.cluster.bank(Bank::B).iter().all(|node| node.ask(&["verify"]).ok())
    });
    lab.close(|lab| {
        lab.sh(
            "cd $M/site/v1; sed 's/ /  /' $W/sums | sha256sum --quiet -c; diff -r $M/site/v1 $W/v1",
        )
    });
}

/// A program is replaced by rename while it runs: the old process keeps its bytes.
#[test]
fn a_running_program_is_replaced() {
    let lab = Lab::open("replace", Weather::Fair);
    lab.sh(
        r#"cp /bin/sleep $M/program; $M/program 600 & p=$!; sleep 0.3
           ! cp /bin/true $M/program 2>/dev/null   # ETXTBSY
           sum=$(sha256sum </proc/$p/exe); cp /bin/true $M/new; mv $M/new $M/program; $M/program
           dd if=$M/program iflag=nocache count=0 status=none; [ "$sum" = "$(sha256sum </proc/$p/exe)" ]
           readlink /proc/$p/exe | grep -q deleted; kill $p"#,
    );
    lab.close(|_| {});
}
