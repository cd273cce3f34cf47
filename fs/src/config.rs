//! The one configuration file, and every limit of the mount with its unit, default and reason.
//!
//! Unknown keys are errors that name the key, and values are checked before anything is touched.
//! Command line flags override what stands here. Paths are relative to the file's directory.

use crate::control::ControlError;
use crate::limits::CacheLimits;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use voter::limits::Limits as VoterLimits;
use voter::replicated::ClusterConfig;
use voter::wire::{PerBank, SHARDS_MAX};

/// Where the file is looked for when `--config` is not given, in this order.
pub const SEARCH: [&str; 2] = ["tercet.toml", "/etc/tercet/tercet.toml"];

/// What is wrong with a configuration, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ConfigError {
    /// What is wrong, naming file and key.
    pub what: String,
    /// What to do next.
    pub hint: String,
}

impl From<ConfigError> for ControlError {
    fn from(e: ConfigError) -> Self {
        ControlError::new(2, e.what, e.hint)
    }
}

fn bad(what: impl Into<String>, hint: impl Into<String>) -> ConfigError {
    ConfigError { what: what.into(), hint: hint.into() }
}

/// What to do about something of a volume that cannot be reached: it may be there, and be another
/// user's.
pub(crate) fn hint_of(e: &std::io::Error, other: &str) -> String {
    match e.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "run it as the user whose files these are (the one who mounts), or as root".into()
        }
        _ => other.into(),
    }
}

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident: $ty:ty = $default:expr, in $min:literal..=$max:literal;)+) => {
        /// The numbers of the mount itself; the name carries the unit. Those of replication are in
        /// [`voter::limits::Limits`]; the file's `[limits]` holds both.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct MountLimits {
            $($(#[doc = $doc])+ pub $name: $ty,)+
        }

        impl Default for MountLimits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl MountLimits {
            fn docs() -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), one_line(concat!($($doc),+))),)+]
            }

            fn check(&self) -> Result<(), String> {
                $(if !($min..=$max).contains(&u64::from(self.$name)) {
                    return Err(format!(
                        "limits.{} = {} is outside {}..={}",
                        stringify!($name), self.$name, $min, $max
                    ));
                })+
                Ok(())
            }
        }
    };
}

limits! {
    /// No request of the kernel waits longer, milliseconds; then EIO. FUSE requests cannot be
    /// interrupted here, so without it a dead bank could make a process unkillable.
    request_deadline_ms: u32 = 30_000, in 1_000..=600_000;
    /// Threads that read requests from the kernel.
    fuse_threads: u16 = 2, in 1..=32;
    /// Largest request, bytes; the kernel lowers it to fs.fuse.max_pages_limit pages.
    request_bytes: u32 = 1 << 20, in 131_072..=16_777_216;
    /// How far the kernel reads ahead, bytes (set after mounting, by root only).
    readahead_bytes: u32 = 4 << 20, in 131_072..=67_108_864;
    /// Requests that the kernel has under way in the background (read-ahead and writeback).
    background_requests: u16 = 128, in 4..=4_096;
    /// Dirty pages of this mount in the kernel, bytes: it writes back from half of that, so that the
    /// banks work while an application still writes, and beyond it writers wait. More only makes the
    /// wait for a sync longer (set by root only, Linux 6.2 and later; before, 1 % of the machine's
    /// limit).
    dirty_pages_bytes: u32 = 128 << 20, in 1_048_576..=2_147_483_647;
    /// How long the kernel may keep names and attributes, seconds. Long, because this mount is the
    /// only writer.
    attribute_ttl_s: u32 = 3_600, in 0..=86_400;
    /// How long a mount that is told to end waits for files that are still open, milliseconds.
    shutdown_grace_ms: u32 = 10_000, in 0..=600_000;
    /// Clients of the control socket served at a time.
    control_clients: u16 = 16, in 1..=256;
}

/// `[volume]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSection {
    /// File with the 64 hex characters that the nodes ask for, mode 0600.
    pub token_file: PathBuf,
}

/// `[banks]`: shard i of a bank is its i-th entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BanksSection {
    /// First bank, `host:port` each.
    pub a: Vec<String>,
    /// Second bank.
    pub b: Vec<String>,
    /// Third bank.
    pub c: Vec<String>,
}

/// `[mount]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountSection {
    /// Where to mount, if the command line does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// Other users may enter; default: yes for root, no for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_other: Option<bool>,
    /// A store that comes back empty is refilled without asking (its old content is lost anyway).
    pub auto_replace: AutoReplace,
}

/// `auto_replace`, on unless switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AutoReplace(pub bool);

impl Default for AutoReplace {
    fn default() -> Self {
        Self(true)
    }
}

/// A whole, checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from, absolute.
    pub file: PathBuf,
    /// `[volume]`
    pub volume: VolumeSection,
    /// `[banks]`
    pub banks: BanksSection,
    /// `[mount]`
    pub mount: MountSection,
    /// `[limits]`, the mount's own.
    pub limits: MountLimits,
    /// `[limits]`, those of replication.
    pub voter: VoterLimits,
    /// `[limits]`, those of the filesystem's caches.
    pub caches: CacheLimits,
    /// Where an observer is mounted, when this is its configuration: it has a run directory of its own,
    /// beside that of the mount that writes.
    pub observer: Option<PathBuf>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    volume: VolumeSection,
    banks: BanksSection,
    #[serde(default)]
    mount: MountSection,
    #[serde(default)]
    limits: toml::Table,
}

/// The caches' part of `[limits]`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CacheNumbers {
    inode_cache_max: usize,
    dirent_cache_max: usize,
    block_cache_bytes: usize,
    xattr_cache_bytes: usize,
}

impl Default for CacheNumbers {
    fn default() -> Self {
        CacheLimits::default().into()
    }
}

impl From<CacheLimits> for CacheNumbers {
    fn from(c: CacheLimits) -> Self {
        Self {
            inode_cache_max: c.inodes,
            dirent_cache_max: c.dirents,
            block_cache_bytes: c.block_bytes,
            xattr_cache_bytes: c.xattr_bytes,
        }
    }
}

impl CacheNumbers {
    const DOCS: [(&'static str, &'static str); 4] = [
        ("inode_cache_max", "Inodes kept in memory (about 300 bytes each)."),
        (
            "dirent_cache_max",
            "Names kept in memory, also of what is not there (about 120 bytes each).",
        ),
        (
            "block_cache_bytes",
            "File data kept in memory, bytes (the kernel's page cache is on top).",
        ),
        ("xattr_cache_bytes", "Extended attributes kept in memory, bytes."),
    ];

    fn limits(self) -> CacheLimits {
        CacheLimits {
            inodes: self.inode_cache_max.max(1),
            dirents: self.dirent_cache_max.max(1),
            block_bytes: self.block_cache_bytes,
            xattr_bytes: self.xattr_cache_bytes,
        }
    }
}

/// Keys of a table of numbers.
fn keys_of<T: Serialize>(numbers: &T) -> toml::Table {
    toml::Table::try_from(numbers).unwrap_or_default()
}

/// Splits `[limits]` into its three owners.
fn split_limits(all: toml::Table) -> Result<(MountLimits, VoterLimits, CacheLimits), String> {
    let known = [
        keys_of(&MountLimits::default()),
        keys_of(&VoterLimits::default()),
        keys_of(&CacheNumbers::default()),
    ];
    let mut parts = [toml::Table::new(), toml::Table::new(), toml::Table::new()];
    for (key, value) in all {
        let Some(owner) = known.iter().position(|k| k.contains_key(&key)) else {
            let near = nearest(&key, known.iter().flat_map(toml::Table::keys));
            return Err(format!("unknown key limits.{key}{near}"));
        };
        parts[owner].insert(key, value);
    }
    let [mount, voter, caches] = parts;
    // A pace, deadline or bound of nothing would stop replication.
    if let Some((key, _)) = voter.iter().find(|(_, v)| v.as_integer().is_some_and(|n| n < 1)) {
        return Err(format!("limits.{key} is outside 1..: it must be at least 1"));
    }
    let words = |e: toml::de::Error| format!("limits: {}", e.to_string().trim_end());
    Ok((
        mount.try_into().map_err(words)?,
        voter.try_into().map_err(words)?,
        caches.try_into::<CacheNumbers>().map_err(words)?.limits(),
    ))
}

/// `, did you mean ...?` for a key that shares its beginning with a known one.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> String {
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    match known.map(|k| (common(key, k), k)).max_by_key(|(n, _)| *n) {
        Some((n, k)) if n >= 3 => format!(", did you mean {k}?"),
        _ => String::new(),
    }
}

/// Names and meanings of the limits of replication: they are declared, with their comments, in the
/// voter; this reads them there, so that nothing is said twice.
fn voter_docs() -> Vec<(String, String)> {
    let mut docs = Vec::new();
    let mut comment = String::new();
    for line in include_str!("../../voter/src/limits.rs").lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push_str(text);
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':')) {
            docs.push((name.to_owned(), one_line(&std::mem::take(&mut comment))));
        } else {
            comment.clear();
        }
    }
    docs
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Config {
    /// Reads and checks `file`, or the first of [`SEARCH`] that exists.
    ///
    /// # Errors
    /// No such file, not TOML, an unknown key, a value that cannot be.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = match file {
            Some(file) => file.to_owned(),
            None => SEARCH.iter().map(PathBuf::from).find(|f| f.exists()).ok_or_else(|| {
                bad(
                    format!("no configuration: neither ./{} nor {} exists", SEARCH[0], SEARCH[1]),
                    "name one with --config FILE; `tercet config --example` prints one to begin with",
                )
            })?,
        };
        let text = std::fs::read_to_string(&file).map_err(|e| {
            let other =
                "name the right file with --config FILE; `tercet config --example` prints one";
            bad(format!("cannot read {}: {e}", file.display()), hint_of(&e, other))
        })?;
        Self::parse(&text, &std::path::absolute(&file).unwrap_or(file))
    }

    /// Checks the text of a configuration file; `file` says where paths begin.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let name = file.display();
        let mut read: FileText = toml::from_str(text).map_err(|e| {
            bad(
                format!("{name}: {}", e.to_string().trim_end()),
                "correct the line shown; `tercet config --example` prints a whole file",
            )
        })?;
        let (limits, voter, caches) = split_limits(std::mem::take(&mut read.limits))
            .map_err(|why| bad(format!("{name}: {why}"), "`tercet config` lists all limits"))?;
        let FileText { volume, banks, mount, .. } = read;
        let config = Self {
            file: file.to_owned(),
            volume,
            banks,
            mount,
            limits,
            voter,
            caches,
            observer: None,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let name = self.file.display();
        let banks = self.bank_nodes();
        for (letter, nodes) in banks {
            if nodes.is_empty() {
                return Err(bad(
                    format!("{name}: banks.{letter} is empty"),
                    format!("list at least one node, as {letter} = [\"127.0.0.1:7000\"]"),
                ));
            }
            if nodes.len() != self.banks.a.len() {
                return Err(bad(
                    format!(
                        "{name}: bank {letter} has {} nodes, bank a has {}",
                        nodes.len(),
                        self.banks.a.len()
                    ),
                    "all three banks have the same number of nodes: entry i is shard i",
                ));
            }
        }
        if self.shards() > usize::from(SHARDS_MAX) {
            return Err(bad(
                format!("{name}: each bank has {} nodes", self.shards()),
                format!("a volume has at most {SHARDS_MAX} shards"),
            ));
        }
        let mut seen: HashMap<&str, String> = HashMap::new();
        for (letter, nodes) in banks {
            for (shard, node) in nodes.iter().enumerate() {
                let here = format!("banks.{letter}[{shard}]");
                check_address(node).map_err(|why| {
                    bad(
                        format!("{name}: {here} = \"{node}\": {why}"),
                        "write host:port, as \"127.0.0.1:7000\" or \"[::1]:7000\"",
                    )
                })?;
                if let Some(before) = seen.insert(node, here.clone()) {
                    return Err(bad(
                        format!("{name}: {here} is the same node as {before}: {node}"),
                        "each of the three banks needs its own node for each shard",
                    ));
                }
            }
        }
        self.limits.check().and_then(|()| self.voter.check()).map_err(|why| {
            bad(format!("{name}: {why}"), "`tercet config` shows every limit with its meaning")
        })
    }

    /// The banks by letter, in order.
    #[must_use]
    pub fn bank_nodes(&self) -> [(&'static str, &[String]); 3] {
        [("a", &self.banks.a), ("b", &self.banks.b), ("c", &self.banks.c)]
    }

    /// Shards of the volume.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.banks.a.len()
    }

    fn dir(&self) -> PathBuf {
        self.file.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
    }

    /// The token's file, absolute.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.dir().join(&self.volume.token_file)
    }

    /// The mountpoint of the file, absolute.
    #[must_use]
    pub fn mountpoint(&self) -> Option<PathBuf> {
        self.mount.mountpoint.as_ref().map(|m| self.dir().join(m))
    }

    /// Directory of the running mount's socket, process id and log.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        let run = self.dir().join("run");
        match &self.observer {
            None => run,
            // Short whatever the mountpoint is: the path of a socket has at most 107 bytes.
            Some(at) => {
                let name = siphasher::sip::SipHasher13::new().hash(at.as_os_str().as_bytes());
                run.join(format!("observer-{name:016x}"))
            }
        }
    }

    /// The same configuration, for an observer at this absolute path.
    #[must_use]
    pub fn for_observer(&self, mountpoint: &Path) -> Self {
        Self { observer: Some(mountpoint.to_owned()), ..self.clone() }
    }

    /// Socket that the commands talk to a mount through.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// Reads the token.
    ///
    /// # Errors
    /// Missing, readable by others, or not 64 hex characters.
    pub fn token(&self) -> Result<String, ConfigError> {
        read_token(&self.token_file())
    }

    /// What the voter needs to know.
    ///
    /// # Errors
    /// Of the token file.
    pub fn cluster(&self) -> Result<ClusterConfig, ConfigError> {
        let nodes = self.bank_nodes().map(|(_, nodes)| nodes.to_vec());
        Ok(ClusterConfig {
            nodes: PerBank(nodes),
            token: self.token()?,
            limits: self.voter.clone(),
        })
    }

    /// Longest time a kernel request may take.
    #[must_use]
    pub fn request_deadline(&self) -> Duration {
        Duration::from_millis(self.limits.request_deadline_ms.into())
    }

    /// The effective values as TOML that could be the file, each limit with its meaning.
    #[must_use]
    pub fn render(&self) -> String {
        let path = |p: &Path| toml::Value::from(p.to_string_lossy().into_owned());
        let token = path(&self.token_file());
        // A comment is one line, whatever the name of the file.
        let mut out = format!(
            "# {}\n[volume]\ntoken_file = {token}\n",
            self.file.display().to_string().escape_default()
        );
        out.push_str("\n[banks]            # entry i is shard i\n");
        for (letter, nodes) in self.bank_nodes() {
            let _ = writeln!(out, "{letter} = {}", toml::Value::from(nodes.to_vec()));
        }
        out.push_str("\n[mount]\n");
        match self.mountpoint() {
            Some(point) => {
                let _ = writeln!(out, "mountpoint = {}", path(&point));
            }
            None => out.push_str(
                "# mountpoint = \"/mnt/tercet\"   (not set: give it to `tercet mount`)\n",
            ),
        }
        match self.mount.allow_other {
            Some(yes) => {
                let _ = writeln!(out, "allow_other = {yes}");
            }
            None => {
                out.push_str("# allow_other = true   (not set: true for root, false for others)\n")
            }
        }
        let _ = writeln!(out, "auto_replace = {}", self.mount.auto_replace.0);
        out.push_str("\n[limits]\n");
        let mut docs: HashMap<String, String> = voter_docs().into_iter().collect();
        docs.extend(MountLimits::docs().into_iter().map(|(n, d)| (n.to_owned(), d)));
        docs.extend(CacheNumbers::DOCS.map(|(n, d)| (n.to_owned(), d.to_owned())));
        let caches = CacheNumbers::from(self.caches);
        for (now, default) in [
            (keys_of(&self.voter), keys_of(&VoterLimits::default())),
            (keys_of(&self.limits), keys_of(&MountLimits::default())),
            (keys_of(&caches), keys_of(&CacheNumbers::default())),
        ] {
            for (name, value) in &now {
                let doc = docs.get(name).map_or("", String::as_str);
                let mark = match default.get(name) {
                    Some(d) if d != value => format!(" (default {d})"),
                    _ => String::new(),
                };
                let _ = writeln!(out, "# {doc}{mark}\n{name} = {value}");
            }
        }
        out
    }
}

/// A configuration to begin with, for `tercet config --example`.
pub const EXAMPLE: &str = r#"[volume]
token_file = "token"            # made by `tercet token token`; relative to this file

[banks]                         # three banks; entry i of each is shard i
a = ["127.0.0.1:7000"]
b = ["127.0.0.1:8000"]
c = ["127.0.0.1:9000"]

[mount]
mountpoint = "/mnt/tercet"

[limits]                        # all optional; `tercet config` shows them with their meaning
refresh_interval_s = 60
"#;

fn check_address(node: &str) -> Result<(), String> {
    let (host, port) = node.rsplit_once(':').ok_or("the port is missing")?;
    if host.is_empty() || host.contains(['/', ' ', '@']) {
        return Err("that is not a host name or address".into());
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => Err(format!("\"{port}\" is not a port")),
        Ok(_) => Ok(()),
    }
}

/// Reads a token file.
///
/// # Errors
/// Missing, readable by others, or not 64 hex characters.
pub fn read_token(file: &Path) -> Result<String, ConfigError> {
    let name = file.display();
    let make = format!("`tercet token {name}` makes one; nodes and mounts of a volume share it");
    let unreadable = |e: std::io::Error| {
        bad(format!("cannot read the token file {name}: {e}"), hint_of(&e, &make))
    };
    let about = std::fs::metadata(file).map_err(unreadable)?;
    if about.mode() & 0o077 != 0 {
        return Err(bad(
            format!(
                "the token file {name} can be read by others (mode {:o})",
                about.mode() & 0o7777
            ),
            format!("chmod 600 {name}"),
        ));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let token = text.trim();
    if token.len() != 64 || !token.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad(format!("{name} does not hold a token (64 hex characters)"), make));
    }
    Ok(token.to_owned())
}

/// Makes a token file, mode 0600, unless a good one is there. True = made.
///
/// # Errors
/// A file is there that is no token, or it cannot be written.
pub fn make_token(file: &Path) -> Result<bool, ConfigError> {
    use std::io::Write as _;
    if file.exists() {
        return read_token(file).map(|_| false);
    }
    let token: [u8; 32] = rand::random();
    let mut text = String::with_capacity(65);
    for byte in token {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    // Under a name of its own first: a half-written token must never stand under the right name.
    let part = file.with_extension(format!("{}.part", std::process::id()));
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
        .and_then(|()| std::fs::hard_link(&part, file))
        .map_err(|e| {
            bad(
                format!("cannot write {}: {e}", file.display()),
                "choose a directory that exists and that you may write",
            )
        })
        .inspect_err(|_| drop(std::fs::remove_file(&part)))?;
    let _ = std::fs::remove_file(&part);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/t/tercet.toml"))
    }

    #[test]
    fn the_example_and_the_rendering_are_configurations() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.token_file(), Path::new("/etc/t/token"));
        assert_eq!(config.control_socket(), Path::new("/etc/t/run/control.sock"));
        let again = parse(&config.render()).unwrap();
        assert_eq!((&again.limits, &again.voter), (&config.limits, &config.voter));
        assert_eq!(again.caches, config.caches);
        // Every limit is explained.
        let text = config.render();
        let lines: Vec<&str> = text.lines().skip_while(|l| *l != "[limits]").skip(1).collect();
        for pair in lines.chunks(2) {
            assert!(pair[0].starts_with("# ") && pair[0].len() > 12, "{pair:?}");
        }
        assert_eq!(again.banks.c, config.banks.c);
    }

    #[test]
    fn odd_names_are_shown_as_toml() {
        let text = EXAMPLE.replace("\"token\"", r#""t\u0001\u007F\"é""#);
        let config = parse(&text.replace("/mnt/tercet", r"/m\u0007")).unwrap();
        let shown = parse(&config.render()).unwrap_or_else(|e| panic!("{e}: {}", config.render()));
        assert_eq!(shown.token_file(), config.token_file());
        assert_eq!(shown.mountpoint(), config.mountpoint());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, needle) in [
            (EXAMPLE.replace("refresh_interval_s", "refresh_intervall_s"), "refresh_intervall_s"),
            (EXAMPLE.replace("[mount]", "[mounts]"), "mounts"),
            (EXAMPLE.replace("127.0.0.1:9000", "127.0.0.1:8000"), "same node as banks.b[0]"),
            (EXAMPLE.replace("127.0.0.1:9000", "127.0.0.1"), "port is missing"),
            (EXAMPLE.replace("127.0.0.1:9000", "http://127.0.0.1:9000"), "not a host name"),
            (EXAMPLE.replace("c = [\"127.0.0.1:9000\"]", "c = []"), "banks.c is empty"),
            (EXAMPLE.replace("\"127.0.0.1:9000\"", "\"x:1\", \"y:2\""), "bank c has 2 nodes"),
            (EXAMPLE.replace("refresh_interval_s = 60", "refresh_interval_s = 0"), "outside"),
            (EXAMPLE.replace("refresh_interval_s = 60", "lease_ms = 1"), "limits.beat_ms"),
            (EXAMPLE.replace("refresh_interval_s = 60", "beat_ms = 100000"), "limits.lease_ms"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.what.contains(needle), "{} lacks {needle}", error.what);
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn a_volume_has_no_more_shards_than_keys_can_name() {
        let with = |shards: u16| {
            let mut text = EXAMPLE.to_owned();
            for (letter, port) in [("a", 7000), ("b", 8000), ("c", 9000)] {
                let nodes: Vec<_> = (0..shards).map(|s| format!("h:{}", port + s)).collect();
                let one = format!("{letter} = [\"127.0.0.1:{port}\"]");
                text = text.replace(&one, &format!("{letter} = {nodes:?}"));
            }
            parse(&text)
        };
        assert_eq!(with(SHARDS_MAX).unwrap().shards(), 256);
        assert!(with(SHARDS_MAX + 1).unwrap_err().hint.contains("256"));
    }

    #[test]
    fn what_is_another_users_is_not_made_anew() {
        let hint = |errno| hint_of(&std::io::Error::from_raw_os_error(errno), "make one");
        assert!(hint(libc::EACCES).contains("run it as the user"));
        assert_eq!(hint(libc::ENOENT), "make one");
    }

    #[test]
    fn tokens_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        assert!(make_token(&file).unwrap());
        let token = read_token(&file).unwrap();
        assert!(!make_token(&file).unwrap());
        assert_eq!(read_token(&file).unwrap(), token);
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        assert!(read_token(&file).unwrap_err().what.contains("read by others"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
