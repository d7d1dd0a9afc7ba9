//! Who asks.

use domain::audit_entry::AuditEntry;
use domain::permission::{Permission, Requirement};
use uuid::Uuid;

use crate::{Error, Result};

/// Who asks, as its token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The application; nil for [`Caller::operator`].
    pub app: Uuid,
    /// What it may do.
    pub permissions: Vec<Permission>,
}

impl Caller {
    /// Whoever may run the server's own command line.
    pub fn operator() -> Self {
        Self { app: Uuid::nil(), permissions: Permission::ALL.to_vec() }
    }

    /// The caller's name in actions and in the audit log.
    pub(crate) fn name(&self) -> String {
        if self.app.is_nil() { AuditEntry::OPERATOR.to_owned() } else { self.app.to_string() }
    }

    /// Refuses callers that do not meet `required`.
    pub(crate) fn require(&self, required: Requirement) -> Result<()> {
        if required.is_met_by(&self.permissions) {
            Ok(())
        } else {
            Err(Error::Forbidden { required, held: self.permissions.clone() })
        }
    }
}
