//! [`FileSystem`]: one async method per POSIX request, and nothing of FUSE.
//!
//! The kernel has already checked permissions (`default_permissions`), types where it knows them,
//! and that a directory operation is alone in its directory; what depends on the volume is checked
//! here. Names are bytes without `/`.

mod ahead;
mod drive;
mod files;
mod follow;
mod names;
mod open;
mod reclaim;
mod types;

pub use crate::errno::FsError;
pub use crate::limits::CacheLimits;
pub use types::*;

use crate::state::{Geometry, State};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::SystemTime;
use tokio::sync::Notify;
use voter::volume::Volume;

/// Result of a request.
pub type Result<T> = std::result::Result<T, FsError>;

/// Tells the time that files are stamped with.
pub type Clock = fn() -> Timespec;

/// The machine's clock.
#[must_use]
pub fn system_clock() -> Timespec {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Timespec { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
}

/// What `format` makes.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Block size, bytes: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits of the root directory.
    pub perm: u16,
    /// Where time comes from.
    pub clock: Clock,
    /// Key of the hash of names; `None` = random, as it should be but in a simulation.
    pub name_key: Option<[u8; 16]>,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            block_size: crate::limits::BLOCK_SIZE_DEFAULT,
            uid: 0,
            gid: 0,
            perm: 0o755,
            clock: system_clock,
            name_key: None,
        }
    }
}

/// How a filesystem is opened.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Bounds of the caches.
    pub caches: CacheLimits,
    /// When reading updates access times.
    pub atime: Atime,
    /// Reclaim and read ahead in tasks of the current tokio runtime. Without it [`FileSystem`]
    /// does nothing on its own (deterministic tests call [`FileSystem::reclaim_all`]).
    pub background: bool,
    /// Every open takes a handle, so that an inode without one is not in use. False: the kernel
    /// opens files without asking, and a file is in use until it is forgotten.
    pub opens_are_told: bool,
    /// Where time comes from.
    pub clock: Clock,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            caches: CacheLimits::default(),
            atime: Atime::default(),
            background: true,
            opens_are_told: true,
            clock: system_clock,
        }
    }
}

/// A mounted filesystem. See the methods in `names.rs` (names and inodes), `files.rs` (content and
/// attributes), `open.rs` (format and open) and `reclaim.rs`.
pub struct FileSystem {
    volume: Arc<dyn Volume>,
    geo: Geometry,
    options: FsOptions,
    state: Mutex<State>,
    /// Wakes the reclaim task.
    wake: Notify,
    me: Weak<FileSystem>,
}

impl FileSystem {
    /// Block size of the volume, bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.geo.block_size
    }

    /// What stands in the caches and waits, for `status`.
    #[must_use]
    pub fn stats(&self) -> FsStats {
        let st = self.state.lock();
        FsStats {
            inodes: st.inodes.weight(),
            dirents: st.dirs.total(),
            block_bytes: st.blocks.weight(),
            handles: st.handles.len(),
            referenced: st.refs.len(),
            reclaim_waiting: st.orphans.len() + st.trims.len(),
        }
    }

    /// Inodes that the kernel refers to, and may have cached.
    #[must_use]
    pub fn referenced(&self) -> Vec<Ino> {
        self.state.lock().refs.keys().copied().collect()
    }

    /// From now on, reading updates access times so.
    pub fn set_atime(&self, atime: Atime) {
        self.state.lock().atime = atime;
    }

    /// A request has come: background work makes way for a while.
    pub fn somebody_asks(&self) {
        self.volume.somebody_asks();
    }

    /// Forgets all that can be read again (tests; nothing is lost by it).
    pub fn drop_caches(&self) {
        self.state.lock().drop_caches();
    }
}
