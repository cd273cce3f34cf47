//! The whole filesystem against a reference tree of bytes: the same random operations on both,
//! everything compared after each, over a volume in memory that is remounted, crashes to a prefix
//! of what was submitted, and is checked. Tiny alphabets and indices modulo what exists make
//! collisions common. Half of the runs have caches of a handful of entries, so that every
//! operation misses and reloads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod model;

use bytes::Bytes;
use fs::filesystem::{
    Attr, CacheLimits, Caller, FileSystem, FormatOptions, FsOptions, Ino, Kind, SetAttr, Strip,
    XattrMode,
};
use fs::key::ROOT;
use model::{Model, Node};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use voter::memory::MemoryVolume;
use voter::volume::Volume;

const ME: Caller = Caller { uid: 7, gid: 8, pid: 1 };
const BS: u64 = 4096;
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", &[b'n'; 255]];
const XATTRS: [&[u8]; 3] = [b"user.x", b"trusted.overlay.opaque", b"security.capability"];

#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize, bool),
    Mkdir(usize, usize, u32),
    Symlink(usize, usize, usize),
    Mknod(usize, usize, usize),
    Link(usize, usize, usize),
    Unlink(usize, usize),
    Rmdir(usize, usize),
    Rename(usize, usize, usize, usize, u32),
    Write(usize, u64, usize, u8),
    Truncate(usize, u64),
    Fallocate(usize, u64, u64, usize),
    Copy(usize, u64, usize, u64, u64),
    Seek(usize, u64, bool),
    SetXattr(usize, usize, usize, usize),
    RemoveXattr(usize, usize),
    Chmod(usize, u16),
    Chown(usize, u32, u32),
    Open(usize, bool),
    Close(usize),
    Forget(usize),
    Readdir(usize, bool),
    DropCaches,
    Sync,
    CloseGroup,
    Reclaim,
    Remount,
    Crash(usize),
}

/// Offsets near the borders that matter: blocks, runs of 64, what is truncated inline.
fn offset() -> impl Strategy<Value = u64> {
    let block = prop_oneof![0u64..4, 60u64..70, 125u64..135, Just(200)];
    let off = prop_oneof![Just(0u64), Just(1), Just(4095), 0u64..4096];
    (block, off).prop_map(|(b, o)| b * BS + o)
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..100, 4000u64..4200, Just(BS), Just(5 * BS), Just(70 * BS), Just(130 * BS)]
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    let d = || 0usize..6;
    let n = || 0usize..4;
    let f = || 0usize..8;
    prop_oneof![
        6 => (d(), n(), any::<bool>()).prop_map(|(a, b, c)| Create(a, b, c)),
        4 => (d(), n(), prop_oneof![Just(0o755u32), Just(0o2775)])
            .prop_map(|(a, b, c)| Mkdir(a, b, c)),
        1 => (d(), n(), 0usize..5000).prop_map(|(a, b, c)| Symlink(a, b, c)),
        1 => (d(), n(), 0usize..4).prop_map(|(a, b, c)| Mknod(a, b, c)),
        3 => (f(), d(), n()).prop_map(|(a, b, c)| Link(a, b, c)),
        4 => (d(), n()).prop_map(|(a, b)| Unlink(a, b)),
        2 => (d(), n()).prop_map(|(a, b)| Rmdir(a, b)),
        6 => (d(), n(), d(), n(), prop_oneof![4 => Just(0u32), 1 => Just(1), 2 => Just(2),
            1 => Just(4), 1 => Just(5), 1 => Just(6), 1 => Just(8)])
            .prop_map(|(a, b, c, d, e)| Rename(a, b, c, d, e)),
        10 => (f(), offset(), length(), 0u8..4)
            .prop_map(|(a, b, c, d)| Write(a, b, c as usize, d)),
        5 => (f(), offset()).prop_map(|(a, b)| Truncate(a, b)),
        4 => (f(), offset(), length(), 0usize..6).prop_map(|(a, b, c, d)| Fallocate(a, b, c, d)),
        2 => (f(), offset(), f(), offset(), length())
            .prop_map(|(a, b, c, d, e)| Copy(a, b, c, d, e)),
        2 => (f(), offset(), any::<bool>()).prop_map(|(a, b, c)| Seek(a, b, c)),
        2 => (f(), 0usize..3, 0usize..300, 0usize..3).prop_map(|(a, b, c, d)| SetXattr(a, b, c, d)),
        1 => (f(), 0usize..3).prop_map(|(a, b)| RemoveXattr(a, b)),
        1 => (f(), 0u16..0o10000).prop_map(|(a, b)| Chmod(a, b)),
        1 => (f(), 0u32..3, 0u32..3).prop_map(|(a, b, c)| Chown(a, b, c)),
        3 => (f(), any::<bool>()).prop_map(|(a, b)| Open(a, b)),
        3 => (0usize..4).prop_map(Close),
        2 => f().prop_map(Forget),
        2 => (d(), any::<bool>()).prop_map(|(a, b)| Readdir(a, b)),
        1 => Just(DropCaches),
        1 => Just(Sync),
        1 => Just(CloseGroup),
        2 => Just(Reclaim),
        1 => Just(Remount),
        1 => (0usize..1000).prop_map(Crash),
    ]
}

/// What a change by somebody without privileges takes away.
const BITS: Strip = Strip::Bits(0o6000);

struct World {
    memory: Arc<MemoryVolume>,
    fs: Arc<FileSystem>,
    options: FsOptions,
    model: Model,
    /// References counted by the filesystem.
    lookups: BTreeMap<Ino, u64>,
    handles: Vec<(u64, Ino)>,
    /// The model after so many submits since the last sync.
    history: Vec<(usize, Model)>,
}

fn pattern(len: usize, fill: u8) -> Vec<u8> {
    // 0 = zeros, which must leave no records.
    (0..len).map(|i| if fill == 0 { 0 } else { (i / 7) as u8 ^ fill }).collect()
}

impl World {
    async fn new(tiny: bool, shards: u16) -> Self {
        let memory = Arc::new(MemoryVolume::new(shards));
        let volume: Arc<dyn Volume> = memory.clone();
        let format = FormatOptions { block_size: BS as u32, ..FormatOptions::default() };
        FileSystem::format(&volume, &format).await.unwrap();
        let caches = if tiny { CacheLimits::tiny() } else { CacheLimits::default() };
        let options = FsOptions { caches, background: false, ..FsOptions::default() };
        let fs = FileSystem::open(volume, options.clone()).await.unwrap();
        let model = Model::new();
        let history = vec![(0, model.clone())];
        Self { memory, fs, options, model, lookups: BTreeMap::new(), handles: vec![], history }
    }

    fn dir(&self, i: usize) -> Ino {
        let dirs = self.model.directories();
        dirs[i % dirs.len()]
    }

    /// Any inode that may be used: has a name or is open.
    fn any(&self, i: usize) -> Ino {
        let all: Vec<Ino> = self.model.nodes.keys().copied().collect();
        all[i % all.len()]
    }

    fn file(&self, i: usize) -> Option<Ino> {
        let all = self.model.files();
        (!all.is_empty()).then(|| all[i % all.len()])
    }

    fn looked(&mut self, ino: Ino) {
        *self.lookups.entry(ino).or_default() += 1;
    }

    fn made(
        &mut self,
        got: Result<Attr, i32>,
        want: Result<(), i32>,
        parent: Ino,
        name: &[u8],
        node: Node,
    ) {
        match (got, want) {
            (Ok(attr), Ok(())) => {
                self.looked(attr.ino);
                self.model.insert(parent, name, attr.ino, node);
            }
            (got, want) => assert_eq!(got.map(|_| ()), want),
        }
    }

    async fn apply(&mut self, step: &Step) {
        let fs = self.fs.clone();
        match *step {
            Step::Create(d, n, excl) => {
                let (d, name) = (self.dir(d), NAMES[n]);
                let flags = libc::O_RDWR | if excl { libc::O_EXCL } else { 0 };
                let got = fs.create(d, name, 0o666, 0o022, flags, ME).await.map_err(|e| e.errno);
                let there = self.model.child(d, name);
                match there {
                    Some(ino)
                        if !excl
                            && self.model.nodes[&ino].kind != Kind::Directory
                            && self.model.nodes[&ino].kind != Kind::Symlink =>
                    {
                        let (attr, handle) = got.unwrap();
                        assert_eq!(attr.ino, ino);
                        self.looked(ino);
                        self.handles.push((handle, ino));
                        self.model.nodes.get_mut(&ino).unwrap().opens += 1;
                    }
                    Some(ino) => {
                        let want = match self.model.nodes[&ino].kind {
                            _ if excl => libc::EEXIST,
                            Kind::Directory => libc::EISDIR,
                            _ => libc::ELOOP,
                        };
                        assert_eq!(got.unwrap_err(), want);
                    }
                    None => {
                        let (attr, handle) = got.unwrap();
                        let mut node = Node::new(Kind::File, 0o644, self.model.gid(d, ME.gid));
                        node.opens = 1;
                        self.handles.push((handle, attr.ino));
                        self.made(Ok(attr), Ok(()), d, name, node);
                    }
                }
            }
            Step::Mkdir(d, n, mode) => {
                let (d, name) = (self.dir(d), NAMES[n]);
                let got = fs.mkdir(d, name, mode, 0, ME).await.map_err(|e| e.errno);
                let want = self.model.free(d, name);
                let setgid = (self.model.nodes[&d].perm | mode as u16) & 0o2000;
                let perm = mode as u16 & 0o777 | setgid;
                let mut node = Node::new(Kind::Directory, perm, self.model.gid(d, ME.gid));
                node.nlink = 2;
                node.parent = d;
                self.made(got, want, d, name, node);
            }
            Step::Symlink(d, n, len) => {
                let (d, name) = (self.dir(d), NAMES[n]);
                let target = vec![b't'; len];
                let got = fs.symlink(d, name, &target, ME).await.map_err(|e| e.errno);
                let want = match len {
                    0 => Err(libc::ENOENT),
                    1..=4095 => self.model.free(d, name),
                    _ => Err(libc::ENAMETOOLONG),
                };
                let mut node = Node::new(Kind::Symlink, 0o777, self.model.gid(d, ME.gid));
                node.data = target;
                self.made(got, want, d, name, node);
            }
            Step::Mknod(d, n, kind) => {
                let (d, name) = (self.dir(d), NAMES[n]);
                let (mode, kind, rdev) = [
                    (libc::S_IFCHR, Kind::Char, 0x501),
                    (libc::S_IFBLK, Kind::Block, 0x701),
                    (libc::S_IFIFO, Kind::Fifo, 0),
                    (libc::S_IFSOCK, Kind::Socket, 0),
                ][kind];
                let got = fs.mknod(d, name, mode | 0o600, rdev, 0, ME).await.map_err(|e| e.errno);
                let want = self.model.free(d, name);
                let mut node = Node::new(kind, 0o600, self.model.gid(d, ME.gid));
                node.rdev = rdev;
                self.made(got, want, d, name, node);
            }
            Step::Link(f, d, n) => {
                let (ino, d, name) = (self.any(f), self.dir(d), NAMES[n]);
                let got = fs.link(ino, d, name).await.map_err(|e| e.errno);
                let want = self.model.link(ino, d, name);
                if let Ok(attr) = &got {
                    assert_eq!(attr.ino, ino);
                    self.looked(ino);
                }
                assert_eq!(got.map(|_| ()), want);
            }
            Step::Unlink(d, n) => {
                let d = self.dir(d);
                let got = fs.unlink(d, NAMES[n]).await.map_err(|e| e.errno);
                assert_eq!(got, self.model.unlink(d, NAMES[n]));
            }
            Step::Rmdir(d, n) => {
                let d = self.dir(d);
                let got = fs.rmdir(d, NAMES[n]).await.map_err(|e| e.errno);
                assert_eq!(got, self.model.rmdir(d, NAMES[n]));
            }
            Step::Rename(d, n, d2, n2, flags) => {
                let (d, d2, n, n2) = (self.dir(d), self.dir(d2), NAMES[n], NAMES[n2]);
                let got = fs.rename(d, n, d2, n2, flags, ME).await.map_err(|e| e.errno);
                let want = self.model.rename((d, n), (d2, n2), flags);
                assert_eq!(got, want);
                if got.is_ok()
                    && flags & libc::RENAME_WHITEOUT != 0
                    && self.model.child(d, n).is_none()
                {
                    let attr = fs.lookup(d, n).await.unwrap();
                    assert_eq!((attr.kind, attr.rdev, attr.uid), (Kind::Char, 0, ME.uid));
                    let node = Node::new(Kind::Char, 0, self.model.gid(d, ME.gid));
                    self.made(Ok(attr), Ok(()), d, n, node);
                }
            }
            Step::Write(f, offset, len, fill) => {
                let Some(ino) = self.file(f) else { return };
                let data = pattern(len, fill);
                let strip = if fill == 3 { BITS } else { Strip::Capability };
                let n = fs.write(ino, 0, offset, Bytes::from(data.clone()), strip, false).await;
                assert_eq!(n.unwrap(), len);
                self.model.write(ino, offset, &data);
                self.model.content_changed(ino, strip == BITS);
            }
            Step::Truncate(f, size) => {
                let Some(ino) = self.file(f) else { return };
                let strip = Strip::Capability;
                let set = SetAttr { size: Some(size), strip, ..SetAttr::default() };
                assert_eq!(fs.setattr(ino, set, ME).await.unwrap().size, size);
                self.model.nodes.get_mut(&ino).unwrap().data.resize(size as usize, 0);
                self.model.content_changed(ino, false);
            }
            Step::Fallocate(f, offset, len, mode) => {
                let Some(ino) = self.file(f) else { return };
                use libc::{
                    FALLOC_FL_COLLAPSE_RANGE as COLLAPSE, FALLOC_FL_KEEP_SIZE as KEEP,
                    FALLOC_FL_PUNCH_HOLE as PUNCH, FALLOC_FL_ZERO_RANGE as ZERO,
                };
                let mode = [0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP, COLLAPSE][mode];
                let got = fs.fallocate(ino, 0, offset, len, mode).await.map_err(|e| e.errno);
                if mode == COLLAPSE {
                    assert_eq!(got, Err(libc::EOPNOTSUPP));
                    return;
                }
                got.unwrap();
                let data = &mut self.model.nodes.get_mut(&ino).unwrap().data;
                let end = (offset + len) as usize;
                if mode & (PUNCH | ZERO) != 0 {
                    let to = end.min(data.len());
                    if (offset as usize) < to {
                        data[offset as usize..to].fill(0);
                    }
                }
                if mode & KEEP == 0 && data.len() < end {
                    data.resize(end, 0);
                }
                self.model.content_changed(ino, false);
            }
            Step::Copy(f, from, g, to, len) => {
                let (Some(a), Some(b)) = (self.file(f), self.file(g)) else { return };
                let got = fs.copy_file_range(a, from, b, to, len).await.map_err(|e| e.errno);
                if a == b && from < to + len && to < from + len {
                    assert_eq!(got, Err(libc::EINVAL));
                    return;
                }
                let source = &self.model.nodes[&a].data;
                let end = source.len().min((from + len) as usize);
                let data = source.get(from as usize..end).unwrap_or_default().to_vec();
                assert_eq!(got, Ok(data.len() as u64));
                if !data.is_empty() {
                    self.model.write(b, to, &data);
                    self.model.content_changed(b, false);
                }
            }
            Step::Seek(f, offset, want_data) => {
                let Some(ino) = self.file(f) else { return };
                let whence = if want_data { libc::SEEK_DATA } else { libc::SEEK_HOLE };
                let got = fs.lseek(ino, offset, whence).await.map_err(|e| e.errno);
                assert_eq!(got, self.model.seek(ino, offset, want_data, BS));
            }
            Step::SetXattr(f, x, len, mode) => {
                let (ino, name) = (self.any(f), XATTRS[x]);
                let value = vec![len as u8; len];
                let mode = [XattrMode::Any, XattrMode::Create, XattrMode::Replace][mode];
                let got = fs.setxattr(ino, name, &value, mode).await.map_err(|e| e.errno);
                let xattrs = &mut self.model.nodes.get_mut(&ino).unwrap().xattrs;
                let want = match (xattrs.contains_key(name), mode) {
                    (true, XattrMode::Create) => Err(libc::EEXIST),
                    (false, XattrMode::Replace) => Err(libc::ENODATA),
                    _ => {
                        xattrs.insert(name.to_vec(), value);
                        Ok(())
                    }
                };
                assert_eq!(got, want);
            }
            Step::RemoveXattr(f, x) => {
                let (ino, name) = (self.any(f), XATTRS[x]);
                let got = fs.removexattr(ino, name).await.map_err(|e| e.errno);
                let old = self.model.nodes.get_mut(&ino).unwrap().xattrs.remove(name);
                assert_eq!(got, old.map(|_| ()).ok_or(libc::ENODATA));
            }
            Step::Chmod(f, perm) => {
                let ino = self.any(f);
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                assert_eq!(fs.setattr(ino, set, ME).await.unwrap().perm, perm);
                self.model.nodes.get_mut(&ino).unwrap().perm = perm;
            }
            Step::Chown(f, uid, gid) => {
                let ino = self.any(f);
                let (uid, gid) = (Some(uid), Some(gid));
                let set = SetAttr { uid, gid, strip: BITS, ..SetAttr::default() };
                fs.setattr(ino, set, ME).await.unwrap();
                let node = self.model.nodes.get_mut(&ino).unwrap();
                (node.uid, node.gid) = (uid.unwrap(), gid.unwrap());
                if node.kind != Kind::Directory {
                    self.model.content_changed(ino, true);
                }
            }
            Step::Open(f, trunc) => {
                let Some(ino) = self.file(f) else { return };
                let flags = libc::O_RDWR | if trunc { libc::O_TRUNC } else { 0 };
                let handle = fs.open_file(ino, flags).await.unwrap();
                self.handles.push((handle, ino));
                let node = self.model.nodes.get_mut(&ino).unwrap();
                node.opens += 1;
                if trunc {
                    node.data.clear();
                    self.model.content_changed(ino, false);
                }
            }
            Step::Close(i) => {
                if self.handles.is_empty() {
                    return;
                }
                let (handle, ino) = self.handles.swap_remove(i % self.handles.len());
                fs.release(handle);
                self.model.nodes.get_mut(&ino).unwrap().opens -= 1;
                self.model.collect(ino);
            }
            Step::Forget(i) => {
                let Some((&ino, &n)) = self.lookups.iter().nth(i) else { return };
                if !self.model.nodes.contains_key(&ino) {
                    // The kernel still refers to what is gone: attributes are told, nothing else.
                    assert_eq!(fs.getattr(ino).await.unwrap().nlink, 0);
                }
                fs.forget(ino, n);
                self.lookups.remove(&ino);
            }
            Step::Readdir(d, plus) => {
                let d = self.dir(d);
                self.list(d, plus, 2).await;
            }
            Step::DropCaches => fs.drop_caches(),
            Step::CloseGroup => self.memory.close_group(),
            Step::Sync => {
                fs.fsync(ROOT, false).await.unwrap();
                self.history = vec![(0, self.model.clone())];
            }
            Step::Reclaim => fs.reclaim_all().await.unwrap(),
            Step::Remount => {
                fs.fsync(ROOT, false).await.unwrap();
                self.history = vec![(0, self.model.clone())];
                self.reopen(0).await;
            }
            Step::Crash(keep) => {
                let keep = keep % (self.memory.unsynced() + 1);
                self.reopen(keep).await;
            }
        }
        let at = self.memory.unsynced();
        if at == 0 {
            self.history.clear();
        }
        self.history.push((at, self.model.clone()));
    }

    /// The next mount, after so many of the submits since the last sync.
    async fn reopen(&mut self, keep: usize) {
        let then = self.history.iter().rposition(|(at, _)| *at <= keep).unwrap_or(0);
        self.model = self.history[then].1.clone();
        self.model.crash();
        self.memory = Arc::new(self.memory.crash(keep));
        self.check("right after the crash").await;
        let volume: Arc<dyn Volume> = self.memory.clone();
        self.fs = FileSystem::open(volume, self.options.clone()).await.unwrap();
        self.lookups.clear();
        self.handles.clear();
        self.history = vec![(0, self.model.clone())];
    }

    async fn check(&self, when: &str) {
        let report = fs::consistency::examine(&*self.memory, true, |_, _| ()).await.unwrap();
        assert!(report.is_clean(), "{when}: {:#?}", report.problems);
    }

    /// Lists a directory in small pages and compares with the model.
    async fn list(&mut self, dir: Ino, plus: bool, page: usize) {
        let (mut cookie, mut names) = (0, BTreeMap::new());
        loop {
            let entries = self.fs.readdir(dir, cookie, plus, page).await.unwrap();
            assert!(entries.len() <= page);
            let Some(last) = entries.last() else { break };
            cookie = last.cookie;
            for e in entries {
                let parent = self.model.nodes[&dir].parent;
                match &e.name[..] {
                    b"." => assert_eq!((e.ino, e.attr), (dir, None)),
                    b".." => assert_eq!((e.ino, e.attr), (parent, None)),
                    _ => {
                        assert_eq!(e.attr.is_some(), plus);
                        if plus {
                            self.looked(e.ino);
                        }
                        assert_eq!(self.model.nodes[&e.ino].kind, e.kind);
                        assert_eq!(names.insert(e.name, e.ino), None, "listed twice");
                    }
                }
            }
        }
        assert_eq!(names, self.model.nodes[&dir].entries, "entries of {dir}");
    }

    /// Compares everything that can be seen.
    async fn compare(&mut self) {
        let inos: Vec<Ino> = self.model.nodes.keys().copied().collect();
        for ino in inos {
            let node = self.model.nodes[&ino].clone();
            let attr = self.fs.getattr(ino).await.unwrap();
            let got = (attr.kind, attr.perm, attr.nlink, attr.uid, attr.gid, attr.rdev);
            let want = (node.kind, node.perm, node.nlink, node.uid, node.gid, node.rdev);
            assert_eq!(got, want, "inode {ino}");
            match node.kind {
                Kind::File => {
                    assert_eq!(attr.size, node.data.len() as u64, "size of {ino}");
                    let pieces =
                        self.fs.read(ino, 0, 0, node.data.len() as u32 + 1, false).await.unwrap();
                    let got = pieces.concat();
                    let differs = got.iter().zip(&node.data).position(|(a, b)| a != b);
                    assert!(
                        got.len() == node.data.len() && differs.is_none(),
                        "content of {ino}: {} of {} bytes, differs at {differs:?}",
                        got.len(),
                        node.data.len()
                    );
                }
                Kind::Symlink => assert_eq!(self.fs.readlink(ino).await.unwrap(), node.data),
                Kind::Directory => self.list(ino, false, 100).await,
                _ => {}
            }
            let names = self.fs.listxattr(ino).await.unwrap();
            let mut want = Vec::new();
            for (name, value) in &node.xattrs {
                want.extend_from_slice(name);
                want.push(0);
                assert_eq!(self.fs.getxattr(ino, name).await.unwrap(), *value);
            }
            assert_eq!(names, want, "xattrs of {ino}");
        }
    }
}

fn run(steps: &[Step], tiny: bool, shards: u16) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(tiny, shards).await;
        for (i, step) in steps.iter().enumerate() {
            world.apply(step).await;
            world.compare().await;
            if i % 8 == 7 {
                world.check("between").await;
            }
        }
        // Let go of everything: nothing may be left over.
        for (handle, _) in std::mem::take(&mut world.handles) {
            world.fs.release(handle);
        }
        for (ino, n) in std::mem::take(&mut world.lookups) {
            world.fs.forget(ino, n);
        }
        world.fs.reclaim_all().await.unwrap();
        let report = fs::consistency::examine(&*world.memory, true, |_, _| ()).await.unwrap();
        assert!(report.is_clean(), "at the end: {:#?}", report.problems);
        assert_eq!((report.orphans, report.dead_blocks), (0, 0), "all is reclaimed");
        let stats = world.fs.stats();
        assert_eq!((stats.handles, stats.referenced, stats.reclaim_waiting), (0, 0, 0));
    });
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 3000, ..ProptestConfig::default() })]
    #[test]
    fn does_what_the_model_does(
        steps in proptest::collection::vec(step(), 1..60),
        tiny: bool,
        shards in 1u16..5,
    ) {
        run(&steps, tiny, shards);
    }
}
