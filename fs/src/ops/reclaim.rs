//! Reclaim: deletes records under dead ranges, then inodes that nobody holds, a group at a time.

use crate::dead::{Range, Under};
use crate::filesystem::{Ino, Kind};
use crate::limits::RECLAIM_BATCH;
use crate::ops::remove::delete_if_small;
use crate::txn::{Done, Txn};

/// What comes next for an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Nothing more.
    Done,
    /// Call again.
    More,
    /// Look which blocks of this range have records, hand them to [`found`], then [`looked`].
    Look { range: Range, stamp: u64 },
}

/// One step that needs no look at the volume.
pub(crate) fn step(t: &mut Txn<'_>, ino: Ino) -> Done<Next> {
    let refs = t.refs(ino);
    let unheld = t.st.orphans.contains(&ino) && refs.lookups == 0 && refs.opens == 0;
    if let Some(set) = t.dead(ino).filter(|set| !set.is_empty()) {
        let ranges = set.ranges().to_vec();
        let stamp = t.st.trims.get(&ino).map_or(0, |trim| trim.stamp);
        if ranges.iter().any(|r| r.under == Under::Dense) {
            blind(t, ino, &ranges);
            return Ok(Next::More);
        }
        return Ok(Next::Look { range: ranges[0], stamp });
    }
    if !unheld {
        return Ok(Next::Done);
    }
    let Some(inode) = t.inode_if_any(ino)? else {
        t.set_orphan(ino, false);
        return Ok(Next::Done);
    };
    if delete_if_small(t, ino, &inode)? {
        t.set_orphan(ino, false);
        return Ok(Next::Done);
    }
    let mut f = t.edit(ino, inode);
    if f.inode.kind == Kind::File && f.inode.blocks > 0 {
        let span = Txn::span(&f);
        let under = if f.inode.blocks >= span / 4 { Under::Dense } else { Under::Sparse };
        t.add_dead(&mut f, 0, span, under);
        t.uncount(&mut f);
        f.inode.size = 0;
        t.put_inode(ino, f.inode);
        return Ok(Next::More);
    }
    let names: Vec<_> = t.xattrs(ino, &f.inode)?.keys().take(RECLAIM_BATCH).cloned().collect();
    for name in names {
        t.set_xattr(ino, &mut f.inode, &name, None)?;
    }
    if f.inode.xattrs > 0 {
        t.put_inode(ino, f.inode);
        return Ok(Next::More);
    }
    t.delete_inode(ino);
    t.set_orphan(ino, false);
    Ok(Next::Done)
}

/// Deletes dense ranges from their beginning, as much as one group takes.
fn blind(t: &mut Txn<'_>, ino: Ino, ranges: &[Range]) {
    let (mut room, mut gone, mut blocks) = (RECLAIM_BATCH as u64, Vec::new(), Vec::new());
    for r in ranges.iter().filter(|r| r.under == Under::Dense) {
        let end = r.end.min(r.start + room);
        room -= end - r.start;
        gone.push((r.start, end));
        blocks.extend(r.start..end);
        if room == 0 {
            break;
        }
    }
    t.reclaimed(ino, &gone, &blocks);
}

/// Deletes records that a look found, where they are still dead.
pub(crate) fn found(t: &mut Txn<'_>, ino: Ino, blocks: &[u64]) -> Done<()> {
    let Some(set) = t.dead(ino) else { return Ok(()) };
    let dead: Vec<(u64, Under)> =
        blocks.iter().filter_map(|&b| set.get(b).map(|u| (b, u))).collect();
    let counted = dead.iter().filter(|(_, u)| *u == Under::Counted).count() as u64;
    if counted > 0
        && let Some(mut inode) = t.inode_if_any(ino)?
    {
        inode.blocks = inode.blocks.saturating_sub(counted);
        t.put_inode(ino, inode);
    }
    t.delete_blocks(ino, dead.into_iter().map(|(b, _)| b));
    Ok(())
}

/// The whole of a range was looked through: nothing is under it any more, unless something was
/// marked meanwhile (then it is looked through again).
pub(crate) fn looked(t: &mut Txn<'_>, ino: Ino, range: Range, stamp: u64) -> Done<()> {
    if t.st.trims.get(&ino).is_some_and(|trim| trim.stamp == stamp) {
        t.reclaimed(ino, &[(range.start, range.end)], &[]);
    }
    Ok(())
}
