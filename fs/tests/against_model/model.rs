//! The reference: a tree of bytes, as simple as can be.

use fs::filesystem::{Ino, Kind};
use fs::key::ROOT;
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) rdev: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) entries: BTreeMap<Vec<u8>, Ino>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) parent: Ino,
    pub(crate) opens: u32,
}

impl Node {
    pub(crate) fn new(kind: Kind, perm: u16, gid: u32) -> Self {
        Self {
            kind,
            perm,
            uid: 7,
            gid,
            nlink: 1,
            rdev: 0,
            data: Vec::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            parent: 0,
            opens: 0,
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Model {
    /// All that have a name or are open, by their real number.
    pub(crate) nodes: BTreeMap<Ino, Node>,
}

type Outcome = Result<(), i32>;

impl Model {
    pub(crate) fn new() -> Self {
        let mut root = Node::new(Kind::Directory, 0o755, 0);
        (root.uid, root.nlink, root.parent) = (0, 2, ROOT);
        Self { nodes: BTreeMap::from([(ROOT, root)]) }
    }

    pub(crate) fn directories(&self) -> Vec<Ino> {
        let dirs = self.nodes.iter().filter(|(_, n)| n.kind == Kind::Directory);
        dirs.map(|(i, _)| *i).collect()
    }

    pub(crate) fn files(&self) -> Vec<Ino> {
        self.nodes.iter().filter(|(_, n)| n.kind == Kind::File).map(|(i, _)| *i).collect()
    }

    pub(crate) fn child(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        self.nodes[&dir].entries.get(name).copied()
    }

    pub(crate) fn free(&self, dir: Ino, name: &[u8]) -> Outcome {
        self.child(dir, name).map_or(Ok(()), |_| Err(libc::EEXIST))
    }

    pub(crate) fn gid(&self, dir: Ino, gid: u32) -> u32 {
        let dir = &self.nodes[&dir];
        if dir.perm & 0o2000 != 0 { dir.gid } else { gid }
    }

    fn at(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    pub(crate) fn insert(&mut self, dir: Ino, name: &[u8], ino: Ino, node: Node) {
        if node.kind == Kind::Directory {
            self.at(dir).nlink += 1;
        }
        assert!(self.nodes.insert(ino, node).is_none(), "an inode number was used again");
        self.at(dir).entries.insert(name.to_vec(), ino);
    }

    /// Forgets an inode that has neither a name nor a handle.
    pub(crate) fn collect(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|n| n.nlink == 0 && n.opens == 0) {
            self.nodes.remove(&ino);
        }
    }

    pub(crate) fn crash(&mut self) {
        self.nodes.retain(|_, n| {
            n.opens = 0;
            n.nlink > 0
        });
    }

    pub(crate) fn link(&mut self, ino: Ino, dir: Ino, name: &[u8]) -> Outcome {
        let node = &self.nodes[&ino];
        if node.kind == Kind::Directory {
            return Err(libc::EPERM);
        }
        if node.nlink == 0 {
            return Err(libc::ENOENT);
        }
        self.free(dir, name)?;
        self.at(ino).nlink += 1;
        self.at(dir).entries.insert(name.to_vec(), ino);
        Ok(())
    }

    /// Removes a name, whatever it leads to.
    fn drop_name(&mut self, dir: Ino, name: &[u8]) {
        let ino = self.at(dir).entries.remove(name).unwrap();
        let node = self.at(ino);
        if node.kind == Kind::Directory {
            node.nlink = 0;
            self.at(dir).nlink -= 1;
        } else {
            node.nlink -= 1;
        }
        self.collect(ino);
    }

    pub(crate) fn unlink(&mut self, dir: Ino, name: &[u8]) -> Outcome {
        let ino = self.child(dir, name).ok_or(libc::ENOENT)?;
        if self.nodes[&ino].kind == Kind::Directory {
            return Err(libc::EISDIR);
        }
        self.drop_name(dir, name);
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, dir: Ino, name: &[u8]) -> Outcome {
        let ino = self.child(dir, name).ok_or(libc::ENOENT)?;
        let node = &self.nodes[&ino];
        if node.kind != Kind::Directory {
            return Err(libc::ENOTDIR);
        }
        if !node.entries.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.drop_name(dir, name);
        Ok(())
    }

    fn is_below(&self, mut at: Ino, top: Ino) -> bool {
        while at != ROOT {
            if at == top {
                return true;
            }
            at = self.nodes[&at].parent;
        }
        top == ROOT
    }

    pub(crate) fn rename(
        &mut self,
        (d, n): (Ino, &[u8]),
        (d2, n2): (Ino, &[u8]),
        flags: u32,
    ) -> Outcome {
        let (noreplace, exchange) = (flags & 1 != 0, flags & 2 != 0);
        if flags > 7 || (exchange && flags != 2) {
            return Err(libc::EINVAL);
        }
        let source = self.child(d, n).ok_or(libc::ENOENT)?;
        let target = self.child(d2, n2);
        let is_dir = |m: &Self, ino: Ino| m.nodes[&ino].kind == Kind::Directory;
        if exchange {
            let target = target.ok_or(libc::ENOENT)?;
            if source == target {
                return Ok(());
            }
            if d != d2
                && ((is_dir(self, source) && self.is_below(d2, source))
                    || (is_dir(self, target) && self.is_below(d, target)))
            {
                return Err(libc::EINVAL);
            }
            self.put(d, n, source, Some(target));
            self.put(d2, n2, target, Some(source));
            return Ok(());
        }
        if noreplace && target.is_some() {
            return Err(libc::EEXIST);
        }
        if target == Some(source) {
            return Ok(());
        }
        if is_dir(self, source) && d != d2 && self.is_below(d2, source) {
            return Err(libc::EINVAL);
        }
        if let Some(target) = target {
            match (is_dir(self, source), is_dir(self, target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                _ => {}
            }
            if !self.nodes[&target].entries.is_empty() {
                return Err(libc::ENOTEMPTY);
            }
            self.drop_name(d2, n2);
        }
        self.put(d, n, source, None);
        self.put(d2, n2, 0, Some(source));
        Ok(())
    }

    /// Makes a name lead elsewhere (`old` = where it led, 0 = nowhere).
    fn put(&mut self, dir: Ino, name: &[u8], old: Ino, new: Option<Ino>) {
        let is_dir = |m: &Self, ino| m.nodes.get(&ino).is_some_and(|n| n.kind == Kind::Directory);
        self.at(dir).entries.remove(name);
        if is_dir(self, old) {
            self.at(dir).nlink -= 1;
        }
        if let Some(new) = new {
            self.at(dir).entries.insert(name.to_vec(), new);
            if is_dir(self, new) {
                self.at(dir).nlink += 1;
                self.at(new).parent = dir;
            }
        }
    }

    pub(crate) fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) {
        let all = &mut self.at(ino).data;
        let (from, to) = (offset as usize, offset as usize + data.len());
        if all.len() < to {
            all.resize(to, 0);
        }
        all[from..to].copy_from_slice(data);
    }

    /// Capabilities go with every change of content; suid and sgid if asked.
    pub(crate) fn content_changed(&mut self, ino: Ino, kill: bool) {
        let node = self.at(ino);
        node.xattrs.remove(&b"security.capability"[..]);
        if kill {
            node.perm &= !0o6000;
        }
    }

    pub(crate) fn seek(&self, ino: Ino, offset: u64, want_data: bool, bs: u64) -> Result<u64, i32> {
        let data = &self.nodes[&ino].data;
        let size = data.len() as u64;
        if offset >= size {
            return Err(libc::ENXIO);
        }
        for block in offset / bs..size.div_ceil(bs) {
            let bytes = &data[(block * bs) as usize..((block + 1) * bs).min(size) as usize];
            if bytes.iter().any(|&b| b != 0) == want_data {
                return Ok((block * bs).max(offset));
            }
        }
        if want_data { Err(libc::ENXIO) } else { Ok(size) }
    }
}
