//! The exact bytes of orders, policies, receipts and manifests: made, signed, and believed only after verification.
//!
//! Owns the signed envelope and the documents inside it, those of break-glass among them. The only ways to a
//! [`VerifiedOrder`], a [`VerifiedPolicy`], a [`VerifiedReceipt`] and a [`VerifiedManifest`] are their `verify`
//! functions, so code that acts on unverified bytes does not compile. Deliberately does not decide whether a verified
//! order may be obeyed: that is the fence's job
//! (`domain::restriction::Fence::admit`), and the fence lives on the machine's disk.
#![forbid(unsafe_code)]

mod break_glass;
mod envelope;
mod key;
mod manifest;
mod order;
mod policy;
mod receipt;

pub use break_glass::{
    BREAK_GLASS_CODES, BREAK_GLASS_USES_MAX, BreakGlassCode, BreakGlassLog, BreakGlassStatement,
    BreakGlassUse, CodeNumber, ParseCodeError, VerifiedBreakGlass, VerifiedBreakGlassLog,
};
pub use envelope::{Envelope, VerifyError};
pub use key::{KeyId, ParseKeyError, PublicKey, SigningKey, TrustedKeys};
pub use manifest::{Manifest, ManifestError, VerifiedManifest};
pub use order::{Order, VerifiedOrder};
pub use policy::{VerifiedPolicy, sign_policy};
pub use receipt::{Outcome, Receipt, VerifiedReceipt};
