//! Generated directory trees whose hashes are kept outside the mount.

use crate::process::run;
use crate::random::Random;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// SHA-256, in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn relative(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

/// What is known of a tree: one line per entry, by path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest(pub BTreeMap<PathBuf, String>);

impl Manifest {
    /// Reads a tree: type, mode, links, size, mtime in ns, and the hash or the target.
    ///
    /// # Errors
    /// The first path that cannot be read, and why.
    pub fn of(root: &Path) -> Result<Self, String> {
        Self::with(root, |_, _| Ok(String::new()))
    }

    /// The same with inode numbers and ctime: what must not change even by remount or repair.
    ///
    /// # Errors
    /// The first path that cannot be read, and why.
    pub fn exact(root: &Path) -> Result<Self, String> {
        Self::with(root, |_, m| {
            Ok(format!(
                " ino {} uid {} gid {} ctime {}.{:09}",
                m.ino(),
                m.uid(),
                m.gid(),
                m.ctime(),
                m.ctime_nsec()
            ))
        })
    }

    /// Everything a copy must carry over to another filesystem: what [`of`](Self::of) reads, owners,
    /// device numbers, all xattrs (access lists are `system.posix_acl_*`, file capabilities
    /// `security.capability`), and which names are one file.
    ///
    /// # Errors
    /// The first path that cannot be read, and why.
    pub fn copied(root: &Path) -> Result<Self, String> {
        let mut names: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
        let mut all = Self::with(root, |path, m| {
            if !m.is_dir() && m.nlink() > 1 {
                names.entry(m.ino()).or_default().push(relative(root, path));
            }
            let mut line = format!(" uid {} gid {}", m.uid(), m.gid());
            let attrs: std::collections::BTreeSet<_> = xattr::list(path)?.collect();
            for name in attrs {
                let value = xattr::get(path, &name)?.unwrap_or_default();
                line += &format!(" {}={}", name.to_string_lossy(), hex(&value));
            }
            Ok(line)
        })?;
        for group in names.values_mut() {
            group.sort();
            for name in group.iter() {
                if let Some(line) = all.0.get_mut(name) {
                    *line += &format!(" same file as {}", group[0].display());
                }
            }
        }
        Ok(all)
    }

    fn with(
        root: &Path,
        mut more: impl FnMut(&Path, &std::fs::Metadata) -> std::io::Result<String>,
    ) -> Result<Self, String> {
        let mut out = BTreeMap::new();
        let mut todo = vec![root.to_path_buf()];
        while let Some(path) = todo.pop() {
            let fail = |e: std::io::Error| format!("{}: {e}", path.display());
            let meta = path.symlink_metadata().map_err(fail)?;
            let what = if meta.is_dir() {
                for entry in path.read_dir().map_err(fail)? {
                    todo.push(entry.map_err(fail)?.path());
                }
                "directory".to_owned()
            } else if meta.is_symlink() {
                format!("-> {}", path.read_link().map_err(fail)?.display())
            } else if meta.is_file() {
                format!("{} {}", meta.len(), sha256(&std::fs::read(&path).map_err(fail)?))
            } else {
                format!("special {:o} {}", meta.mode(), meta.rdev())
            };
            let line = format!(
                "{what} mode {:o} links {} mtime {}.{:09}{}",
                meta.mode(),
                meta.nlink(),
                meta.mtime(),
                meta.mtime_nsec(),
                more(&path, &meta).map_err(fail)?
            );
            out.insert(relative(root, &path), line);
        }
        Ok(Self(out))
    }

    /// The first differences, readable; empty = the same.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let keys: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        keys.into_iter()
            .filter_map(|k| {
                let [a, b] = [self, other].map(|m| m.0.get(k).map_or("missing", String::as_str));
                (a != b).then(|| format!("{}: wanted {a}, found {b}", k.display()))
            })
            .take(20)
            .collect()
    }

    /// Fails unless `other` is the same.
    ///
    /// # Panics
    /// With the first differences.
    pub fn assert_same(&self, other: &Self, when: &str) {
        let differences = self.differences(other);
        assert!(differences.is_empty(), "{when}:\n{}", differences.join("\n"));
    }
}

/// Makes a tree of about `files` files with directories, links and odd names under `root`.
///
/// # Panics
/// When the (ordinary, outside) filesystem refuses.
pub fn generate(root: &Path, files: u64, random: &mut Random) {
    let mut dirs = vec![root.to_path_buf()];
    std::fs::create_dir_all(root).expect("a directory for the tree");
    for n in 0..files {
        if n % 25 == 0 {
            let parent = &dirs[usize::try_from(random.below(dirs.len() as u64)).unwrap_or(0)];
            let dir = parent.join(format!("dir-{n}"));
            std::fs::create_dir(&dir).expect("a directory of the tree");
            dirs.push(dir);
        }
        let dir = &dirs[usize::try_from(random.below(dirs.len() as u64)).unwrap_or(0)];
        let path = dir.join(match n % 50 {
            7 => format!("user-site-Clone-2016-05-11-04:51:27 {n}"),
            8 => format!("ünï çødé {n}"),
            _ => format!("file-{n}.txt"),
        });
        // Mostly small, as in a root filesystem; now and then several blocks.
        let len = if n % 40 == 0 { random.below(300_000) } else { random.below(6_000) };
        let len = usize::try_from(len).unwrap_or(0);
        std::fs::write(&path, random.bytes(len)).expect("a file of the tree");
        let mode = [0o644, 0o600, 0o755, 0o4755][usize::try_from(n % 4).unwrap_or(0)];
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("its mode");
        if n % 30 == 3 {
            symlink(format!("../file-{}.txt", n / 2), dir.join(format!("link-{n}")))
                .expect("a link");
        }
        if n % 30 == 4 {
            std::fs::hard_link(&path, dir.join(format!("hard-{n}"))).expect("a hard link");
        }
    }
}

/// Packs a tree, outside the mount.
///
/// # Panics
/// When tar fails.
pub fn pack(root: &Path, tar: &Path) {
    let mut command = Command::new("tar");
    command.arg("-C").arg(root).arg("--format=pax").arg("-cf").arg(tar).arg(".");
    run(&mut command, Duration::from_secs(60)).assert_ok();
}

/// The command that unpacks `tar` into `into`.
#[must_use]
pub fn unpack(tar: &Path, into: &Path) -> Command {
    let mut command = Command::new("tar");
    command.arg("-C").arg(into).arg("-xpf").arg(tar);
    command
}
