//! The write concern of writes that say none. Shards take it for `w: 1`: it is for routers to say the default.

use bson::{Document, RawDocument, RawDocumentBuf, doc};
use reshard::wire::scan::Command;

use super::Router;
use super::failure::Failure;
use super::raw;
use super::targets::Kind;

/// What MongoDB takes where nobody has set another default.
pub(super) fn majority() -> Document {
    doc! {"w": "majority"}
}

/// Whether a command writes.
pub(super) fn writes(command: &Command<'_>) -> bool {
    Kind::of(command.name).is_some() || (command.name == "aggregate" && command.pipeline_writes())
}

impl Router {
    /// Asks for the default of the cluster.
    pub(super) async fn load_write_concern(&self) -> Result<(), Failure> {
        let defaults = self.config.command("admin", &doc! {"getDefaultRWConcern": 1}).await?;
        let set = defaults.get_document("defaultWriteConcern").ok().filter(|set| set.contains_key("w"));
        *self.write_concern.lock() = set.cloned().unwrap_or_else(majority);
        Ok(())
    }

    /// What to send in place of a client's own write concern; nothing if that says enough.
    pub(super) fn write_concern(&self, own: Option<&RawDocument>) -> Result<Option<RawDocumentBuf>, Failure> {
        let default = self.write_concern.lock().clone();
        let Some(own) = own else { return Ok(Some(RawDocumentBuf::try_from(&default)?)) };
        if own.get("w")?.is_some() {
            return Ok(None);
        }
        let w = default.into_iter().filter(|(key, _)| key == "w");
        raw::with(own, &w.collect()).map(Some)
    }

    /// A command that says its write concern.
    pub(super) fn with_write_concern(&self, command: &RawDocument) -> Result<RawDocumentBuf, Failure> {
        let Some(concern) = self.write_concern(command.get_document("writeConcern").ok())? else {
            return Ok(command.to_owned());
        };
        let mut said = raw::without(command, &["writeConcern"])?;
        said.append(bson::cstr!("writeConcern"), concern);
        Ok(said)
    }
}
