//! A mount that reads beside the one that writes: forgets what it has cached whenever something new can
//! be seen on the banks. What the other changed is not told, so it is all of it; the kernel keeps
//! attributes and names for a second only (docs/semantics.md).

use super::open::load_marks;
use super::{FileSystem, Result};
use std::sync::Weak;
use std::time::Duration;

/// Between two looks at whether there is something new.
const LOOK: Duration = Duration::from_millis(100);

/// Works until the filesystem is dropped.
pub(super) async fn run(fs: Weak<FileSystem>, mut seen: u64) {
    loop {
        let Some(fs) = fs.upgrade() else { return };
        if let Err(e) = fs.take_news(&mut seen).await {
            tracing::warn!(error = %e, "what is new cannot be read yet");
        }
        drop(fs);
        tokio::time::sleep(LOOK).await;
    }
}

impl FileSystem {
    /// Forgets what is cached if the volume shows something newer than `seen`, which is moved then.
    ///
    /// # Errors
    /// The volume's; everything stays as it is then, to be tried again.
    pub async fn take_news(&self, seen: &mut u64) -> Result<()> {
        let Some(now) = self.volume.news().filter(|now| now != seen) else { return Ok(()) };
        let marks = load_marks(&*self.volume, self.geo.keys).await?;
        self.state.lock().take_news(marks);
        *seen = now;
        Ok(())
    }
}
