//! `cordon login` and `cordon logout`: profiles.

use std::rc::Rc;

use anyhow::Result;

use crate::client::Client;
use crate::connection::ConnectionArguments;
use crate::error::UsageError;
use crate::outcome::Outcome;
use crate::profile::ProfileFile;
use crate::progress::Progress;

/// Verifies the server and the app by getting a token, and keeps them as a profile.
pub(crate) async fn login(arguments: &ConnectionArguments, progress: Rc<Progress>) -> Result<Outcome> {
    let connection = arguments.given()?;
    let client = Client::new(connection.clone(), Rc::clone(&progress))?;
    client.sign_in().await?;
    let (file, name) = (ProfileFile::of_user()?, arguments.profile());
    let app = connection.client_id.clone();
    file.store(name, connection.into())?;
    progress.note(&format!(
        "signed in to {} as app {app}; profile {name:?} is in {}",
        client.server(),
        file.path().display()
    ));
    Ok(Outcome::Done)
}

/// Forgets a profile.
pub(crate) fn logout(arguments: &ConnectionArguments, progress: &Progress) -> Result<Outcome> {
    let (file, name) = (ProfileFile::of_user()?, arguments.profile());
    if !file.remove(name)? {
        return Err(UsageError(format!("there is no profile {name:?} in {}", file.path().display())).into());
    }
    progress.note(&format!("profile {name:?} is gone; the app keeps its secret until: cordon app revoke"));
    Ok(Outcome::Done)
}
