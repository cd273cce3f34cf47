//! Mounting, and what the kernel can be told about what it has cached.

use super::{Adapter, kernel};
use crate::config::MountLimits;
use crate::filesystem::FileSystem;
use crate::metrics::Metrics;
use crate::mount::MountFlags;
use fuser::{INodeNo, Notifier, Session};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Everything a session needs.
pub struct Setup {
    /// What to serve.
    pub fs: Arc<FileSystem>,
    /// Where; absolute and without symbolic links.
    pub mountpoint: PathBuf,
    /// What /proc/self/mountinfo shows as the device.
    pub source: String,
    /// `-o` options.
    pub flags: MountFlags,
    /// Another mount writes; this one only reads.
    pub beside: bool,
    /// Sizes and deadlines.
    pub limits: MountLimits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Runtime for what has to wait.
    pub runtime: Handle,
}

/// A mounted filesystem.
pub struct Serving {
    /// Hears when the session has ended (because someone unmounted).
    pub ended: oneshot::Receiver<io::Result<()>>,
    /// What the kernel remembers of it.
    pub kernel: KernelCache,
}

/// What the kernel remembers of a mounted filesystem.
#[derive(Clone)]
pub struct KernelCache(Notifier);

impl KernelCache {
    /// Makes the kernel forget attributes and content of these inodes; it asks again for each. Waits
    /// for dirty pages to be written (or to fail): never call it where a request waits for the
    /// caller, and hold nothing.
    pub fn drop_inodes(&self, inos: &[u64]) {
        for &ino in inos {
            if let Err(e) = self.0.inval_inode(INodeNo(ino), 0, 0) {
                tracing::debug!(ino, "the kernel does not drop an inode: {e}");
            }
        }
    }

    /// Makes the kernel write back what is dirty of an inode from `offset` on, and forget it; as
    /// careful as [`Self::drop_inodes`].
    pub(super) fn write_back(&self, ino: INodeNo, offset: i64) {
        // An inode that it does not know has nothing dirty.
        let _ = self.0.inval_inode(ino, offset, 0);
    }
}

/// Mounts and starts serving on threads of its own.
///
/// # Errors
/// No /dev/fuse, no permission, or the kernel lacks what is needed.
pub fn serve(setup: Setup) -> io::Result<Serving> {
    let root = rustix::process::geteuid().is_root();
    let config = kernel::session_config(&setup.source, &setup.flags, &setup.limits, root);
    let adapter = Adapter::new(&setup);
    let cache = adapter.cache.clone();
    let session = Session::new(adapter, &setup.mountpoint, &config)?;
    kernel::tune(&setup.mountpoint, &setup.limits);
    let kernel = KernelCache(session.notifier());
    let _ = cache.set(kernel.clone());
    let (ended, receiver) = oneshot::channel();
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        let result = session.run();
        let _ = ended.send(result);
    })?;
    Ok(Serving { ended: receiver, kernel })
}
