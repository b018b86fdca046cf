//! One command of the corpus: `corpus/*.jsonl`, one a line, in MongoDB's extended JSON.

use anyhow::{Context as _, Result, bail};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocumentBuf, doc};

/// What is expected through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// What the server answers that is asked directly.
    Same,
    /// That it cannot be done now, with the reason; the server is not asked then.
    Refused,
    /// An error because something before was refused.
    AnError,
}

/// One command.
pub(crate) struct Case {
    /// File and description.
    pub(crate) name: String,
    run: Document,
    on: String,
    session: Option<u8>,
    /// What of the reply is compared: a row of [`mask::PARTS`].
    ///
    /// [`mask::PARTS`]: crate::mask::PARTS
    pub(crate) only: Option<String>,
    /// Servers give no order.
    pub(crate) sorted: bool,
    /// It is asked of sharded clusters too: not what their order of things, or the router of the test bed, which
    /// has no transactions, answers by chance or not at all.
    pub(crate) sharded: bool,
    /// By the state's name.
    expected: Document,
}

/// All commands of a file, in order.
pub(crate) fn read(file: &str, text: &str) -> Result<Vec<Case>> {
    let lines = text.lines().filter(|line| !line.starts_with("//") && !line.is_empty());
    lines.map(|line| parse(file, line).with_context(|| format!("{file}: {line}"))).collect()
}

fn parse(file: &str, line: &str) -> Result<Case> {
    // Straight from the text: a JSON value of its own would forget the order of fields.
    let mut line: Document = serde_json::from_str(line)?;
    let mut text = |field: &str| match line.remove(field) {
        Some(Bson::String(text)) => Some(text),
        _ => None,
    };
    let name = format!("{file}: {}", text("is").context("is")?);
    let (on, only) = (text("on").unwrap_or_else(|| "$db".into()), text("only"));
    let session = line.remove("session").and_then(|session| session.as_i32());
    let session = session.map(u8::try_from).transpose()?;
    let sharded = line.remove("sharded").is_none_or(|sharded| sharded == Bson::Boolean(true));
    let sorted = line.remove("sorted").is_some_and(|sorted| sorted == Bson::Boolean(true));
    let Some(Bson::Document(run)) = line.remove("run") else { bail!("run") };
    Ok(Case { name, run, on, session, only, sorted, sharded, expected: line })
}

impl Case {
    /// The name of its command.
    pub(crate) fn command_name(&self) -> &str {
        self.run.keys().next().map_or("", String::as_str)
    }

    /// What is expected in a state.
    pub(crate) fn expected(&self, state: &str) -> Result<Expected> {
        Ok(match self.expected.get_str(state) {
            Err(_) | Ok("same") => Expected::Same,
            Ok("refused") => Expected::Refused,
            Ok("other") => Expected::AnError,
            Ok(word) => bail!("{}: {word}", self.name),
        })
    }

    /// The command on `database`, `cursor` being the last one that was opened.
    pub(crate) fn command(&self, database: &str, cursor: i64) -> Result<RawDocumentBuf> {
        let mut command = self.run.clone();
        if let Some(session) = self.session {
            let mut bytes = vec![session; 15];
            bytes.push(database.bytes().fold(0, u8::wrapping_add));
            command.insert("lsid", doc! { "id": Binary { subtype: BinarySubtype::Uuid, bytes } });
        }
        command.insert("$db", self.on.as_str());
        let filled = fill(Bson::Document(command), database, cursor);
        let Bson::Document(command) = filled else { bail!("no document") };
        Ok(RawDocumentBuf::try_from(&command)?)
    }
}

fn fill(value: Bson, database: &str, cursor: i64) -> Bson {
    match value {
        Bson::String(text) if text == "$cursor" => Bson::Int64(cursor),
        Bson::String(text) => Bson::String(text.replace("$db", database)),
        Bson::Document(document) => {
            let fields = document.into_iter().map(|(name, value)| (name, fill(value, database, cursor)));
            Bson::Document(fields.collect())
        }
        Bson::Array(array) => {
            Bson::Array(array.into_iter().map(|value| fill(value, database, cursor)).collect())
        }
        other => other,
    }
}

/// Every word that `expected` may be asked for is a state's name: a misspelt one would never count.
pub(crate) fn names_states(case: &Case, states: &[&str]) -> Result<()> {
    match case.expected.keys().find(|key| !states.contains(&key.as_str())) {
        Some(key) => bail!("{}: {key} is no state", case.name),
        None => Ok(()),
    }
}
