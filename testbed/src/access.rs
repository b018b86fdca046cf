//! How clients reach a server: URIs, credentials, TLS.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use bson::Document;
use mongodb::Client;
use mongodb::options::ClientOptions;

use crate::tls::TlsFiles;
use crate::wire;

/// How long clients look for a server that fits before they give up.
pub(crate) const SELECTION: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password: String,
}

/// What all nodes of a cluster have in common for clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) user: Option<User>,
    pub(crate) tls: Option<TlsFiles>,
}

impl Access {
    /// `mongodb://[user:password@]hosts/?first option[&authSource=admin][&tls...]`
    pub(crate) fn uri(&self, hosts: &str, option: &str) -> String {
        let mut uri = String::from("mongodb://");
        if let Some(user) = &self.user {
            let _ = write!(uri, "{}:{}@", percent_encode(&user.name), percent_encode(&user.password));
        }
        let _ = write!(uri, "{hosts}/?{option}");
        if self.user.is_some() {
            uri.push_str("&authSource=admin");
        }
        if let Some(tls) = &self.tls {
            let _ = write!(uri, "&tls=true&tlsCAFile={}", percent_encode(&tls.ca.to_string_lossy()));
        }
        uri
    }

    /// One command to one server. The driver does it where it takes a login or TLS.
    pub(crate) async fn run(&self, address: &str, database: &str, command: Document) -> Result<Document> {
        if self.user.is_none() && self.tls.is_none() {
            return wire::command(address, database, command).await;
        }
        let client = connect(&self.uri(address, "directConnection=true")).await?;
        let answer = client.database(database).run_command(command).await;
        client.shutdown().immediate(true).await;
        Ok(answer?)
    }
}

/// A client for `uri` that is patient enough for elections.
pub(crate) async fn connect(uri: &str) -> Result<Client> {
    let mut options = ClientOptions::parse(uri).await?;
    options.server_selection_timeout = Some(SELECTION);
    Ok(Client::with_options(options)?)
}

/// Percent-encodes all but the characters that never need it.
fn percent_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        let open = Access::default();
        assert_eq!(
            open.uri("127.0.0.1:1,127.0.0.1:2", "replicaSet=a"),
            "mongodb://127.0.0.1:1,127.0.0.1:2/?replicaSet=a"
        );
        let user = User { name: String::from("ann"), password: String::from("p@ss/wörd") };
        let closed = Access { user: Some(user), tls: None };
        let want = "mongodb://ann:p%40ss%2Fw%C3%B6rd@127.0.0.1:1/?replicaSet=a&authSource=admin";
        assert_eq!(closed.uri("127.0.0.1:1", "replicaSet=a"), want);
    }
}
