//! A node to look into: a running one over HTTP, or a stopped one by its directory. Both answer the
//! same few questions; nothing here writes, except [`Target::inject`].

use super::{Failure, TargetArgs};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use storenode::client::{ClientError, ClientLimits, NodeClient, split_bulk};
use storenode::disk::RealDisk;
use storenode::offline::Offline;
use storenode::service::{NodeConfig, OpenError, Service};
use storenode::token::Token;
use storenode::wire::{
    BUCKETS, Digest, Envelope, Fault, Found, Key, NodeError, RecordHead, Reply, Request, Status,
    StoreId, Version, VolumeId, WIRE_FORMAT, digest,
};

/// A record as shown.
pub(super) enum Record {
    /// Whole; `None` = tombstone.
    Whole { version: Version, digest: Digest, value: Option<bytes::Bytes> },
    /// Not whole; what is known of it.
    Damaged { why: String, head: Option<(Version, Digest)>, value: Option<bytes::Bytes> },
}

/// A page of keys, ascending.
pub(super) struct KeyPage {
    pub(super) heads: Vec<RecordHead>,
    /// Known to be damaged, as far as it was looked at.
    pub(super) damaged: Vec<Key>,
    /// Go on from here (inclusive).
    pub(super) next: Option<Key>,
}

/// A step of a verification.
pub(super) struct Verified {
    pub(super) bad: Vec<(Key, String)>,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Go on after this key.
    pub(super) next: Option<Key>,
}

pub(super) enum Target {
    Live(Box<Live>),
    Stopped { disk: Box<Offline>, dir: PathBuf },
}

/// A running node and the runtime to speak to it.
pub(super) struct Live {
    runtime: tokio::runtime::Runtime,
    client: NodeClient,
    deadline: Duration,
    envelope: Envelope,
}

/// Heads of a page.
const PAGE_KEYS: usize = 4096;

/// What to say when a directory cannot be opened.
pub(super) fn cannot_open(dir: &std::path::Path, e: &OpenError) -> Failure {
    let dir = dir.display();
    Failure::usage(match e {
        OpenError::Locked => format!(
            "{dir} is in use by a running node: stop it first, or ask the node itself with --url"
        ),
        OpenError::NoNode => format!("{dir}: no storage node lives here; nothing was changed"),
        e => format!("{dir}: {e}; nothing was changed"),
    })
}

fn open_disk(dir: &std::path::Path) -> Result<Arc<RealDisk>, Failure> {
    RealDisk::open(dir, false)
        .map(Arc::new)
        .map_err(|e| Failure::usage(format!("cannot open {}: {e}", dir.display())))
}

impl Target {
    pub(super) fn open(args: &TargetArgs) -> Result<Self, Failure> {
        match (&args.dir, &args.url) {
            (Some(dir), _) => Offline::open(open_disk(dir)?)
                .map(|disk| Self::Stopped { disk: Box::new(disk), dir: dir.clone() })
                .map_err(|e| cannot_open(dir, &e)),
            (None, Some(url)) => Live::open(url, args).map(|live| Self::Live(Box::new(live))),
            (None, None) => Err(Failure::usage("which node? give --url or --dir")),
        }
    }

    pub(super) fn status(&self) -> Result<Status, Failure> {
        match self {
            Self::Stopped { disk, .. } => Ok(disk.status()),
            Self::Live(live) => live.status(),
        }
    }

    /// What is wrong with the files of a stopped node; a running one tells it in its status.
    pub(super) fn damage(&self) -> Vec<String> {
        match self {
            Self::Stopped { disk, .. } => disk.damage(),
            Self::Live(_) => Vec::new(),
        }
    }

    /// What is wrong with the files of a node, beside its records: a running one looks.
    pub(super) fn verify_files(&self) -> Result<Vec<String>, Failure> {
        let live = match self {
            Self::Stopped { disk, .. } => return Ok(disk.damage()),
            Self::Live(live) => live,
        };
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            match live.call(&Request::VerifyFiles { from })?.0 {
                Reply::FilesVerified { bad, next, .. } => {
                    all.extend(bad);
                    let Some(next) = next else { return Ok(all) };
                    from = next;
                }
                _ => return Err(live.odd()),
            }
        }
    }

    /// Heads with `start <= key < end` (`end` empty = no end), ascending, tombstones only from a
    /// stopped node: see [`Target::tombstones`].
    pub(super) fn keys(&self, start: &[u8], end: &[u8]) -> Result<KeyPage, Failure> {
        match self {
            Self::Stopped { disk, .. } => {
                let mut heads = disk.keys(start, PAGE_KEYS);
                let more = heads.len() == PAGE_KEYS;
                let next = heads.last().filter(|_| more).map(|r| successor(&r.key));
                let next = next.filter(|k| end.is_empty() || k.as_slice() < end);
                heads.retain(|r| end.is_empty() || r.key.as_slice() < end);
                Ok(KeyPage { heads, damaged: Vec::new(), next })
            }
            Self::Live(live) => {
                let request = Request::Scan {
                    start: start.to_vec(),
                    end: end.to_vec(),
                    limit: PAGE_KEYS as u32,
                    values: false,
                    through: Version::ZERO,
                };
                match live.call(&request)?.0 {
                    Reply::Records { records: heads, damaged, next, .. } => {
                        Ok(KeyPage { heads, damaged, next: next.map(|k| successor(&k)) })
                    }
                    _ => Err(live.odd()),
                }
            }
        }
    }

    /// Tombstones of a running node within the range, by key: it lists them by bucket only, so all
    /// are gathered first.
    pub(super) fn tombstones(
        &self,
        start: &[u8],
        end: &[u8],
    ) -> Result<BTreeMap<Key, RecordHead>, Failure> {
        let mut found = BTreeMap::new();
        let Self::Live(live) = self else { return Ok(found) };
        for bucket in 0..BUCKETS as u16 {
            let mut after = Key::new();
            loop {
                let limit = PAGE_KEYS as u32;
                let request = Request::Bucket { bucket, after, limit, through: Version::ZERO };
                let Reply::Records { records, next, .. } = live.call(&request)?.0 else {
                    return Err(live.odd());
                };
                let wanted = |r: &RecordHead| {
                    r.len.is_none()
                        && r.key.as_slice() >= start
                        && (end.is_empty() || r.key.as_slice() < end)
                };
                found.extend(records.into_iter().filter(wanted).map(|r| (r.key.clone(), r)));
                match next {
                    Some(key) => after = key,
                    None => break,
                }
            }
        }
        Ok(found)
    }

    /// One record, its value checked against its digest here as well.
    pub(super) fn get(&self, key: &Key) -> Result<Option<Record>, Failure> {
        match self {
            Self::Stopped { disk, .. } => Ok(disk.get(key).map(|(head, value)| match value {
                Ok(value) => checked(key, head.version, head.digest, value),
                Err(why) => {
                    Record::Damaged { why, head: Some((head.version, head.digest)), value: None }
                }
            })),
            Self::Live(live) => live.get(key),
        }
    }

    pub(super) fn verify(&self, after: &[u8], budget_bytes: u32) -> Result<Verified, Failure> {
        match self {
            Self::Stopped { disk, .. } => {
                let (bad, records, bytes, next) = disk.verify(after, u64::from(budget_bytes));
                Ok(Verified { bad, records, bytes, next })
            }
            Self::Live(live) => {
                let request = Request::Verify { after: after.to_vec(), budget_bytes };
                match live.call(&request)?.0 {
                    Reply::Verified { bad, next, records, bytes } => {
                        Ok(Verified { bad, records, bytes, next })
                    }
                    _ => Err(live.odd()),
                }
            }
        }
    }

    /// Breaks something on purpose.
    pub(super) fn inject(self, fault: Fault) -> Result<(), Failure> {
        match self {
            Self::Live(live) => live.call(&Request::Inject(fault)).map(|_| ()),
            Self::Stopped { disk, dir } => {
                let status = disk.status();
                drop(disk);
                let mut config = NodeConfig::new(status.bank, status.shard);
                config.allow_faults = true;
                let service =
                    Service::open(open_disk(&dir)?, config).map_err(|e| cannot_open(&dir, &e))?;
                let done = service.inject(fault).map_err(|e| Failure::bad(e.to_string()));
                service.close();
                done
            }
        }
    }
}

/// The smallest key behind `key`.
fn successor(key: &[u8]) -> Key {
    let mut next = key.to_vec();
    next.push(0);
    next
}

fn checked(key: &[u8], version: Version, want: Digest, value: Option<bytes::Bytes>) -> Record {
    if digest(key, version, value.as_deref()) == want {
        return Record::Whole { version, digest: want, value };
    }
    let why = "the value does not match its digest".to_string();
    Record::Damaged { why, head: Some((version, want)), value }
}

impl Live {
    fn open(url: &str, args: &TargetArgs) -> Result<Self, Failure> {
        let Some(token_file) = &args.token_file else {
            return Err(Failure::usage("--url needs --token-file, the token of the volume"));
        };
        let token = Token::load(token_file).map_err(Failure::usage)?;
        let client =
            NodeClient::new(url, &token, ClientLimits::default()).map_err(Failure::usage)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::usage(format!("cannot start: {e}")))?;
        // Nobody yet: only `status` may be asked so.
        let envelope = Envelope {
            format: WIRE_FORMAT,
            volume: VolumeId::ZERO,
            store: StoreId::ZERO,
            epoch: 0,
            nonce: 0,
        };
        let deadline = Duration::from_secs(u64::from(args.timeout_s.max(1)));
        let mut live = Self { runtime, client, deadline, envelope };
        let status = live.status()?;
        live.envelope.volume = status.volume.unwrap_or_default();
        live.envelope.store = status.store;
        Ok(live)
    }

    fn status(&self) -> Result<Status, Failure> {
        match self.call(&Request::Status)?.0 {
            Reply::Status(status) => Ok(*status),
            _ => Err(self.odd()),
        }
    }

    fn call(&self, request: &Request) -> Result<(Reply, bytes::Bytes), Failure> {
        let call = self.client.call(self.envelope, request, Vec::new(), self.deadline);
        self.runtime.block_on(call).map_err(|e| {
            let node = self.client.base_url();
            match &e {
                ClientError::Unreachable(what) => Failure::usage(format!(
                    "no node answers ({what}). Does it run? For a stopped one use --dir"
                )),
                ClientError::Refused(NodeError::Unauthorized) => {
                    Failure::usage(format!("{node}: {e}"))
                }
                ClientError::Refused(_) => Failure::bad(format!("{node}: {e}")),
                ClientError::Timeout(_) | ClientError::Garbled(_) => {
                    Failure::usage(format!("{node}: {e}"))
                }
            }
        })
    }

    fn get(&self, key: &Key) -> Result<Option<Record>, Failure> {
        let request = Request::Read { keys: [key.clone()].into(), through: Version::ZERO };
        let (reply, bulk) = self.call(&request)?;
        let values = split_bulk(&request, &reply, &bulk).map_err(Failure::usage)?;
        let Reply::Found { items, .. } = reply else { return Err(self.odd()) };
        Ok(match items.into_iter().next() {
            None | Some(Found::Absent) => None,
            Some(Found::Damaged { what }) => {
                Some(Record::Damaged { why: what, head: None, value: None })
            }
            Some(Found::Record { version, digest, len }) => {
                let value = len.and(values.into_iter().next());
                Some(checked(key, version, digest, value))
            }
        })
    }

    /// The client checks that replies fit their requests, so this is not seen.
    fn odd(&self) -> Failure {
        Failure::usage(format!("{}: an answer to another question", self.client.base_url()))
    }
}
