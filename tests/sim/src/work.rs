//! What a mount is used for: keys and values of the voter, or files of the filesystem on top of it.
//! Each has a model of its content that is a plain value.

use crate::plan::Plan;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use voter::Replicated;

/// Why something did not go as in the model.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// It was refused with an error: allowed only beyond the fault model.
    Refused(String),
    /// It was wrong: never allowed.
    Wrong(String),
}

impl Trouble {
    /// The same, said of something larger.
    #[must_use]
    pub fn of(self, what: &dyn std::fmt::Display) -> Self {
        match self {
            Self::Refused(e) => Self::Refused(format!("{what}: {e}")),
            Self::Wrong(e) => Self::Wrong(format!("{what}: {e}")),
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Refused(e) | Self::Wrong(e)) = self;
        f.write_str(e)
    }
}

impl From<String> for Trouble {
    fn from(e: String) -> Self {
        Self::Wrong(e)
    }
}

/// A refusal, from whatever error.
pub(crate) fn refused<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Trouble {
    let what = what.to_owned();
    move |e| Trouble::Refused(format!("{what}: {e}"))
}

/// What was asked for, or what went wrong.
pub type Check<T = ()> = Result<T, Trouble>;

/// Which operation of which mount: makes every value written unlike all others.
#[derive(Clone, Copy, Debug)]
pub struct Tag {
    /// Number of the mount.
    pub mount: u64,
    /// Number of the operation.
    pub operation: u64,
}

/// A use of one mount.
pub trait Work: Sized + Send + Sync + 'static {
    /// The model of all that is stored.
    type State: Clone + PartialEq + Send + Sync + 'static;

    /// What a new volume holds.
    fn empty() -> Self::State;

    /// The content in a few words.
    fn brief(state: &Self::State) -> String;

    /// Begins on a volume that was just opened (and formats a new one); checks that what it holds
    /// fits together.
    fn open(plan: &Plan, volume: &Arc<Replicated>) -> impl Future<Output = Check<Self>> + Send;

    /// One atomic operation, drawn from `dice`; answers the content after it.
    fn operate(
        &self,
        state: Self::State,
        dice: u64,
        tag: Tag,
    ) -> impl Future<Output = Check<Self::State>> + Send;

    /// An operation of a mount that was taken over, and may be refused for that.
    fn haunt(&self, state: Self::State, n: u32) -> impl Future<Output = Check<Self::State>> + Send;

    /// Reads something, drawn from `dice`, and compares.
    fn look(&self, state: &Self::State, dice: u64) -> impl Future<Output = Check> + Send;

    /// Reads everything.
    fn dump(&self) -> impl Future<Output = Check<Self::State>> + Send;

    /// A sync of all so far.
    fn sync(&self) -> BoxFuture<'static, Check>;

    /// Before a clean end: nothing is left over.
    fn settle(&self) -> impl Future<Output = Check> + Send;
}
