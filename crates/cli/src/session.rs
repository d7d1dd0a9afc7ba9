//! What a command works with: a client, and where its words go.

use std::rc::Rc;

use crate::client::Client;
use crate::output::Output;
use crate::progress::Progress;

/// One run of the program against one server.
pub(crate) struct Session {
    /// Calls the API.
    pub(crate) client: Client,
    /// Takes the result.
    pub(crate) output: Output,
    /// Takes what happens on the way.
    pub(crate) progress: Rc<Progress>,
}
