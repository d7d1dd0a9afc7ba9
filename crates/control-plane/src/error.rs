//! What can go wrong in a use case, without a word of HTTP.

use domain::machine_action::MachineActionId;
use domain::permission::Right;
use domain::rate_limit::Exceeded;
use store::StoreError;

/// The result of a use case.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a use case was not carried out. Except in [`Error::Unavailable`] and [`Error::Internal`], whose sources are for
/// the log only, every text is meant for the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such thing, or the caller may not know of it.
    #[error("{entity} {id} was not found")]
    NotFound {
        /// What was asked for, such as `Machine`.
        entity: &'static str,
        /// By which id or name.
        id: String,
    },
    /// A value is not possible.
    #[error("{0}")]
    InvalidInput(String),
    /// A value is missing.
    #[error("Parameter {0} is missing")]
    MissingParameter(&'static str),
    /// The request makes no sense in the present state.
    #[error("{0}")]
    BadRequest(String),
    /// A list is asked to continue where its query never stopped.
    #[error("{0}")]
    BadQuery(odata::Error),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The machine has an action of the same kind that is not final.
    #[error("Action is already in progress (id {})", .0.0)]
    ActiveAction(MachineActionId),
    /// The machine's operating system has no agent.
    #[error("{0}")]
    OsPlatformNotSupported(String),
    /// The machine's agent or kernel cannot do it.
    #[error("{0}")]
    ClientVersionNotSupported(String),
    /// The caller is not who it says.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller lacks a permission.
    #[error("one of these permissions is needed: {}", required.join(", "))]
    Forbidden {
        /// Whether the caller is a person, whose token names scopes.
        delegated: bool,
        /// What the operation demands, as the caller's kind of token spells it.
        required: Vec<&'static str>,
        /// What the caller holds, likewise.
        held: Vec<&'static str>,
        /// Whether reading is demanded of one that may restrict, which users expect to be enough.
        only_restricts: bool,
    },
    /// None of the person's roles holds this right.
    #[error("none of your roles holds the right \"{0}\"")]
    MissingRight(Right),
    /// What was asked for is refused, with the reason.
    #[error("{0}")]
    Disallowed(String),
    /// The feature is switched off.
    #[error("{0}")]
    Disabled(String),
    /// The caller made too many calls.
    #[error("at most {} calls in {} s are possible, wait {:.1} s", .0.limit.calls, .0.limit.window.as_secs(), .0.retry_after.as_secs_f64())]
    RateLimited(Exceeded),
    /// Too many others wait for the same. Nothing was changed; try again.
    #[error("{0}")]
    Busy(&'static str),
    /// A machine sent what its own gate cannot have signed, or what makes no sense.
    #[error("the machine misbehaves: {0}")]
    MachineMisbehaves(String),
    /// The store cannot be used at the moment. Nothing was changed.
    #[error("the store cannot be used")]
    Unavailable(#[source] StoreError),
    /// A fault of Cordon or of its database. Nothing was changed.
    #[error("internal fault")]
    Internal(#[source] StoreError),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Closed => Self::Unavailable(error),
            StoreError::Query(error) => Self::BadQuery(error),
            StoreError::Duplicate(_)
            | StoreError::Statement(_)
            | StoreError::Damaged(_)
            | StoreError::Unsupported(_) => Self::Internal(error),
        }
    }
}
