//! What a client says of itself in its first `hello`, checked as servers check it.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use crate::wire::error::{
    CLIENT_METADATA_APP_NAME_TOO_LARGE, CLIENT_METADATA_MISSING_FIELD, CLIENT_METADATA_TOO_LARGE, ErrorReply,
    TYPE_MISMATCH,
};

const LONGEST_APP_NAME: usize = 128;

/// Checks `client`, which may be `longest` bytes long; returns the name of the application.
///
/// # Errors
/// The error that servers answer with.
pub fn check(client: RawBsonRef<'_>, longest: usize) -> Result<Option<&str>, ErrorReply> {
    let RawBsonRef::Document(client) = client else {
        return Err(mismatch("The client metadata document must be a document".into()));
    };
    if client.as_bytes().len() > longest {
        let text = format!("The client metadata document must be less then or equal to {longest}bytes");
        return Err(ErrorReply::new(CLIENT_METADATA_TOO_LARGE, text));
    }
    let mut named = None;
    if let Some(application) = section(client, "application", false)? {
        let name = text(application, "application", "name", false)?;
        if name.is_some_and(|name| name.len() > LONGEST_APP_NAME) {
            let text = format!(
                "The 'application.name' field must be less then or equal to {LONGEST_APP_NAME} bytes in the \
                 client metadata document"
            );
            return Err(ErrorReply::new(CLIENT_METADATA_APP_NAME_TOO_LARGE, text));
        }
        named = name;
    }
    if let Some(driver) = section(client, "driver", true)? {
        text(driver, "driver", "name", true)?;
        text(driver, "driver", "version", true)?;
    }
    if let Some(os) = section(client, "os", true)? {
        text(os, "os", "type", true)?;
    }
    Ok(named)
}

/// The name that a `hello` gives its application.
pub(super) fn application(hello: &RawDocument) -> Option<&str> {
    hello.get_document("client").ok()?.get_document("application").ok()?.get_str("name").ok()
}

fn section<'a>(
    client: &'a RawDocument,
    name: &str,
    required: bool,
) -> Result<Option<&'a RawDocument>, ErrorReply> {
    match client.get(name).ok().flatten() {
        Some(RawBsonRef::Document(found)) => Ok(Some(found)),
        Some(_) => Err(mismatch(format!(
            "The '{name}' field is required to be a BSON document in the client metadata document"
        ))),
        None if required => Err(missing(&format!("sub-document '{name}'"))),
        None => Ok(None),
    }
}

fn text<'a>(
    section: &'a RawDocument,
    name: &str,
    field: &str,
    required: bool,
) -> Result<Option<&'a str>, ErrorReply> {
    match section.get(field).ok().flatten() {
        Some(RawBsonRef::String(found)) => Ok(Some(found)),
        Some(_) => Err(mismatch(format!(
            "The '{name}.{field}' field must be a string in the client metadata document"
        ))),
        None if required => Err(missing(&format!("field '{name}.{field}'"))),
        None => Ok(None),
    }
}

fn mismatch(text: String) -> ErrorReply {
    ErrorReply::new(TYPE_MISMATCH, text)
}

fn missing(what: &str) -> ErrorReply {
    let text = format!("Missing required {what} in the client metadata document");
    ErrorReply::new(CLIENT_METADATA_MISSING_FIELD, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, doc};

    fn code(client: Document) -> i32 {
        let whole = bson::RawDocumentBuf::try_from(&doc! { "client": client }).unwrap();
        let checked = check(whole.get("client").unwrap().unwrap(), 512);
        checked.err().map_or(0, |error| error.code.0)
    }

    fn with(name: &str, value: impl Into<bson::Bson>) -> Document {
        let mut client = doc! { "driver": { "name": "d", "version": "1" }, "os": { "type": "Linux" } };
        client.insert(name, value);
        client
    }

    #[test]
    fn what_servers_refuse_is_refused_with_their_codes() {
        assert_eq!(code(with("platform", "x")), 0);
        assert_eq!(code(with("application", doc! { "name": "x".repeat(128) })), 0);
        assert_eq!(code(with("application", doc! { "name": "x".repeat(129) })), 184);
        assert_eq!(code(with("application", doc! {})), 0);
        assert_eq!(code(with("application", doc! { "name": 1 })), 14);
        assert_eq!(code(with("platform", "x".repeat(512))), 185);
        assert_eq!(code(doc! {}), 183);
        assert_eq!(code(with("driver", doc! { "name": "d" })), 183);
        assert_eq!(code(with("driver", "d")), 14);
        assert_eq!(code(with("os", doc! {})), 183);
    }
}
