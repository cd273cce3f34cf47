//! Files: the filesystem core over the voter, without a kernel. The content is a tree; it is the same
//! reference tree that the filesystem's own tests use.

#[allow(dead_code, clippy::unwrap_used, reason = "shared with the filesystem's tests")]
#[path = "../../../fs/tests/against_model/model.rs"]
mod model;

use crate::plan::Plan;
use crate::work::{Check, Tag, Trouble, Work, refused};
use bytes::Bytes;
use fs::filesystem::{
    Attr, CacheLimits, Caller, FileSystem, FormatOptions, FsError, FsOptions, Ino, Kind, SetAttr,
    Strip, Timespec, XattrMode,
};
use fs::key::ROOT;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use model::{Model, Node};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use voter::Replicated;
use voter::volume::Volume;

const ME: Caller = Caller { uid: 7, gid: 8, pid: 1 };
const NAMES: [&[u8]; 5] = [b"a", b"b", b"c", b"d", &[b'n'; 200]];
const BLOCK: u64 = 4096;
/// What was unlinked and cut off is gone within this, virtual time.
const RECLAIM_WITHIN: Duration = Duration::from_secs(60);

/// See the module.
pub struct Files {
    fs: Arc<FileSystem>,
    volume: Arc<Replicated>,
}

/// A tree, as a plain value.
#[derive(Clone, PartialEq)]
pub struct Tree(Model);

/// What is stored must be the same in every run; times are the business of other tests.
fn clock() -> Timespec {
    Timespec { sec: 1_000_000_000, nsec: 0 }
}

/// EIO is a refusal; any other error is wrong here.
fn said(what: &str) -> impl FnOnce(FsError) -> Trouble {
    let what = what.to_owned();
    move |e| {
        let said = format!("{what}: {e}");
        if is_refusal(&e) { Trouble::Refused(said) } else { Trouble::Wrong(said) }
    }
}

fn is_refusal(e: &FsError) -> bool {
    matches!(e.errno, libc::EIO | libc::ENOSPC | libc::ETIMEDOUT)
}

/// One operation, drawn.
#[derive(Debug)]
enum Op {
    Create(Ino, usize),
    Mkdir(Ino, usize),
    Symlink(Ino, usize),
    Link(Ino, Ino, usize),
    Unlink(Ino, usize),
    Rmdir(Ino, usize),
    Rename(Ino, usize, Ino, usize, u32),
    Write(Ino, u64, usize),
    Truncate(Ino, u64),
    Punch(Ino, u64, u64),
    SetXattr(Ino, usize),
    Chmod(Ino, u16),
}

impl Tree {
    fn draw(&self, dice: &mut StdRng) -> Op {
        let dirs = self.0.directories();
        let files = self.0.files();
        let all: Vec<Ino> = self.0.nodes.keys().copied().collect();
        let dir = dirs[dice.random_range(0..dirs.len())];
        let dir2 = dirs[dice.random_range(0..dirs.len())];
        let (n, n2) = (dice.random_range(0..NAMES.len()), dice.random_range(0..NAMES.len()));
        let any = all[dice.random_range(0..all.len())];
        let block = [0, 1, 2, 63, 64, 100, 130][dice.random_range(0..7)];
        let offset = block * BLOCK + [0, 1, 4095, 2000][dice.random_range(0..4)];
        let Some(file) = files.get(dice.random_range(0..files.len().max(1))).copied() else {
            return if dice.random_ratio(1, 3) { Op::Mkdir(dir, n) } else { Op::Create(dir, n) };
        };
        match dice.random_range(0..100) {
            0..=11 => Op::Create(dir, n),
            12..=19 => Op::Mkdir(dir, n),
            20..=22 => Op::Symlink(dir, n),
            23..=27 => Op::Link(any, dir, n),
            28..=35 => Op::Unlink(dir, n),
            36..=38 => Op::Rmdir(dir, n),
            39..=50 => Op::Rename(dir, n, dir2, n2, [0, 0, 0, 1, 2][dice.random_range(0..5)]),
            51..=76 => {
                let len = [1, 100, 4096, 5000, 3 * 4096, 80_000][dice.random_range(0..6)];
                Op::Write(file, offset, len)
            }
            77..=84 => Op::Truncate(file, offset),
            85..=89 => Op::Punch(file, offset, [1, 4096, 100 * 4096][dice.random_range(0..3)]),
            90..=95 => Op::SetXattr(any, dice.random_range(0..300)),
            _ => Op::Chmod(any, dice.random_range(0..0o1000)),
        }
    }
}

impl Files {
    /// The kernel lets go of what it has looked up, at once.
    fn made(
        &self,
        got: Result<Attr, FsError>,
        want: Result<(), i32>,
        model: &mut Model,
        (dir, name): (Ino, &[u8]),
        node: Node,
    ) -> Check {
        match (got, want) {
            (Ok(attr), Ok(())) => {
                self.fs.forget(attr.ino, 1);
                if model.nodes.contains_key(&attr.ino) {
                    return Err(format!("inode number {} is used again", attr.ino).into());
                }
                model.insert(dir, name, attr.ino, node);
                Ok(())
            }
            (got, want) => agree(got.map(|_| ()), want),
        }
    }

    async fn perform(&self, model: &mut Model, op: &Op, tag: Tag) -> Check {
        let fs = &self.fs;
        let node = |model: &Model, kind, perm, d| Node::new(kind, perm, model.gid(d, ME.gid));
        match *op {
            Op::Create(d, n) => {
                let want = model.free(d, NAMES[n]);
                let flags = libc::O_RDWR | libc::O_EXCL;
                let got = fs.create(d, NAMES[n], 0o666, 0o022, flags, ME).await;
                let got = got.map(|(attr, handle)| {
                    fs.release(handle);
                    attr
                });
                let node = node(model, Kind::File, 0o644, d);
                self.made(got, want, model, (d, NAMES[n]), node)
            }
            Op::Mkdir(d, n) => {
                let want = model.free(d, NAMES[n]);
                let got = fs.mkdir(d, NAMES[n], 0o755, 0, ME).await;
                let setgid = model.nodes[&d].perm & 0o2000;
                let mut node = node(model, Kind::Directory, 0o755 | setgid, d);
                (node.nlink, node.parent) = (2, d);
                self.made(got, want, model, (d, NAMES[n]), node)
            }
            Op::Symlink(d, n) => {
                let want = model.free(d, NAMES[n]);
                let target = format!("target {}", tag.operation).into_bytes();
                let got = fs.symlink(d, NAMES[n], &target, ME).await;
                let mut node = node(model, Kind::Symlink, 0o777, d);
                node.data = target;
                self.made(got, want, model, (d, NAMES[n]), node)
            }
            Op::Link(ino, d, n) => {
                let got = fs.link(ino, d, NAMES[n]).await.map(|a| fs.forget(a.ino, 1));
                agree(got, model.link(ino, d, NAMES[n]))
            }
            Op::Unlink(d, n) => agree(fs.unlink(d, NAMES[n]).await, model.unlink(d, NAMES[n])),
            Op::Rmdir(d, n) => agree(fs.rmdir(d, NAMES[n]).await, model.rmdir(d, NAMES[n])),
            Op::Rename(d, n, d2, n2, flags) => {
                let got = fs.rename(d, NAMES[n], d2, NAMES[n2], flags, ME).await;
                agree(got, model.rename((d, NAMES[n]), (d2, NAMES[n2]), flags))
            }
            Op::Write(ino, offset, len) => {
                let fill = tag.operation as u8 | 1;
                let data: Vec<u8> = (0..len).map(|i| (i / 7) as u8 ^ fill).collect();
                let got = fs
                    .write(ino, 0, offset, Bytes::from(data.clone()), Strip::Capability, false)
                    .await;
                model.write(ino, offset, &data);
                model.content_changed(ino, false);
                agree(got.map(|_| ()), Ok(()))
            }
            Op::Truncate(ino, size) => {
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                let got = fs.setattr(ino, set, ME).await;
                if let Some(node) = model.nodes.get_mut(&ino) {
                    node.data.resize(size as usize, 0);
                }
                agree(got.map(|_| ()), Ok(()))
            }
            Op::Punch(ino, offset, len) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let got = fs.fallocate(ino, 0, offset, len, mode).await;
                if let Some(node) = model.nodes.get_mut(&ino) {
                    let to = node.data.len().min((offset + len) as usize);
                    if (offset as usize) < to {
                        node.data[offset as usize..to].fill(0);
                    }
                }
                agree(got, Ok(()))
            }
            Op::SetXattr(ino, len) => {
                let value = vec![tag.operation as u8; len];
                let got = fs.setxattr(ino, b"user.x", &value, XattrMode::Any).await;
                if let Some(node) = model.nodes.get_mut(&ino) {
                    node.xattrs.insert(b"user.x".to_vec(), value);
                }
                agree(got, Ok(()))
            }
            Op::Chmod(ino, perm) => {
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                let got = fs.setattr(ino, set, ME).await;
                if let Some(node) = model.nodes.get_mut(&ino) {
                    node.perm = perm;
                }
                agree(got.map(|_| ()), Ok(()))
            }
        }
    }

    /// One inode and what it holds, as the filesystem shows it.
    async fn node(&self, ino: Ino, parent: Ino) -> Check<Node> {
        let fs = &self.fs;
        let attr = fs.getattr(ino).await.map_err(said("getattr"))?;
        let mut node = Node::new(attr.kind, attr.perm, attr.gid);
        (node.uid, node.nlink, node.rdev) = (attr.uid, attr.nlink, attr.rdev);
        match attr.kind {
            Kind::File => {
                let mut at = 0;
                while at < attr.size {
                    let want = (attr.size - at).min(1 << 20) as u32;
                    let pieces = fs.read(ino, 0, at, want, false).await.map_err(said("read"))?;
                    let n: usize = pieces.iter().map(Bytes::len).sum();
                    if n == 0 {
                        return Err(format!("inode {ino} ends at {at} of {}", attr.size).into());
                    }
                    pieces.iter().for_each(|p| node.data.extend_from_slice(p));
                    at += n as u64;
                }
            }
            Kind::Symlink => {
                node.data = fs.readlink(ino).await.map_err(said("readlink"))?.to_vec();
            }
            Kind::Directory => {
                node.parent = parent;
                node.entries = self.list(ino, parent).await?;
            }
            _ => {}
        }
        let names = fs.listxattr(ino).await.map_err(said("listxattr"))?;
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let value = fs.getxattr(ino, name).await.map_err(said("getxattr"))?;
            node.xattrs.insert(name.to_vec(), value.to_vec());
        }
        Ok(node)
    }

    async fn list(&self, dir: Ino, parent: Ino) -> Check<BTreeMap<Vec<u8>, Ino>> {
        let (mut cookie, mut names) = (0, BTreeMap::new());
        loop {
            let page = self.fs.readdir(dir, cookie, false, 3).await.map_err(said("readdir"))?;
            let Some(last) = page.last() else { return Ok(names) };
            cookie = last.cookie;
            for e in page {
                let right = match &e.name[..] {
                    b"." => e.ino == dir,
                    b".." => e.ino == parent,
                    _ => names.insert(e.name.clone(), e.ino).is_none(),
                };
                if !right {
                    return Err(format!("directory {dir} lists {:?} wrongly", e.name).into());
                }
            }
        }
    }

    async fn check(volume: &dyn Volume, when: &str) -> Check<fs::consistency::Report> {
        let report = fs::consistency::examine(volume, true, |_, _| ()).await;
        let report = report.map_err(refused(when))?;
        if report.is_clean() {
            return Ok(report);
        }
        Err(format!("{when}: {:?}", report.problems).into())
    }
}

fn agree(got: Result<(), FsError>, want: Result<(), i32>) -> Check {
    if got.as_ref().copied().map_err(|e| e.errno) == want {
        return Ok(());
    }
    match (got, want) {
        (Err(e), _) if is_refusal(&e) => Err(Trouble::Refused(format!("error {e}"))),
        (Err(e), Ok(())) => Err(format!("error {e}").into()),
        (got, want) => Err(format!("{got:?} and not {want:?}").into()),
    }
}

impl Work for Files {
    type State = Tree;

    fn empty() -> Tree {
        Tree(Model::new())
    }

    fn brief(tree: &Tree) -> String {
        let one = |(ino, n): (&Ino, &Node)| {
            let names: Vec<String> = n
                .entries
                .iter()
                .map(|(name, ino)| format!("{}:{ino}", String::from_utf8_lossy(&name[..1])))
                .collect();
            let sum = n.data.iter().fold(0_u32, |h, b| h.wrapping_mul(31) ^ u32::from(*b));
            let len = n.data.len();
            format!("{ino}[{:o} x{} {len}/{sum:x} {}]", n.perm, n.nlink, names.join(" "))
        };
        tree.0.nodes.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    async fn open(plan: &Plan, volume: &Arc<Replicated>) -> Check<Self> {
        let shared: Arc<dyn Volume> = volume.clone();
        let format = FormatOptions {
            block_size: BLOCK as u32,
            clock,
            name_key: Some([plan.seed as u8; 16]),
            ..FormatOptions::default()
        };
        let made = FileSystem::format(&shared, &format).await;
        match made {
            Ok(()) => {}
            Err(e) if e.errno == libc::EEXIST => {}
            Err(e) => return Err(said("format")(e)),
        }
        Self::check(&**volume, "when mounted").await?;
        let caches = if plan.keys < 10 { CacheLimits::tiny() } else { CacheLimits::default() };
        let options = FsOptions { caches, clock, ..FsOptions::default() };
        let fs = FileSystem::open(shared, options).await.map_err(said("open"))?;
        Ok(Self { fs, volume: Arc::clone(volume) })
    }

    async fn operate(&self, mut state: Tree, dice: u64, tag: Tag) -> Check<Tree> {
        let op = state.draw(&mut StdRng::seed_from_u64(dice));
        let done = self.perform(&mut state.0, &op, tag).await;
        done.map_err(|e| e.of(&format!("{op:?}")))?;
        Ok(state)
    }

    async fn haunt(&self, mut state: Tree, n: u32) -> Check<Tree> {
        let op = Op::Chmod(ROOT, 0o700 | (n % 64) as u16);
        let tag = Tag { mount: 0, operation: u64::from(n) };
        self.perform(&mut state.0, &op, tag).await?;
        Ok(state)
    }

    async fn look(&self, state: &Tree, dice: u64) -> Check {
        let mut dice = StdRng::seed_from_u64(dice);
        let all: Vec<Ino> = state.0.nodes.keys().copied().collect();
        let ino = all[dice.random_range(0..all.len())];
        let want = &state.0.nodes[&ino];
        let got = self.node(ino, want.parent).await?;
        if got == *want {
            return Ok(());
        }
        let brief =
            |n: &Node| Self::brief(&Tree(Model { nodes: BTreeMap::from([(ino, n.clone())]) }));
        Err(format!("read {}\nand not {}", brief(&got), brief(want)).into())
    }

    async fn dump(&self) -> Check<Tree> {
        let mut nodes = BTreeMap::new();
        let mut todo = vec![(ROOT, ROOT)];
        while let Some((ino, parent)) = todo.pop() {
            if nodes.contains_key(&ino) {
                continue;
            }
            let node = self.node(ino, parent).await?;
            todo.extend(node.entries.values().map(|child| (*child, ino)));
            nodes.insert(ino, node);
        }
        Ok(Tree(Model { nodes }))
    }

    fn sync(&self) -> BoxFuture<'static, Check> {
        let fs = Arc::clone(&self.fs);
        async move { fs.fsync(ROOT, false).await.map_err(said("fsync")) }.boxed()
    }

    async fn settle(&self) -> Check {
        // The background may be in the middle of one, which the call below does not wait for.
        let limit = Instant::now() + RECLAIM_WITHIN;
        loop {
            self.fs.reclaim_all().await.map_err(said("reclaim"))?;
            self.fs.fsync(ROOT, false).await.map_err(said("fsync"))?;
            // A pass beside the background's own step may see the two halves of a change.
            let left = match Self::check(&*self.volume, "at the end").await {
                Ok(report) if (report.orphans, report.dead_blocks) == (0, 0) => return Ok(()),
                Ok(r) => format!(
                    "stuck: {} orphans and {} dead blocks are left",
                    r.orphans, r.dead_blocks
                )
                .into(),
                Err(why) => why,
            };
            if Instant::now() >= limit {
                return Err(left);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
