//! Connection strings: where they come from, what they must look like, and that they are never printed.

use std::fmt;
use std::path::Path;

use mongodb::options::ConnectionString;

use super::reader::Located;
use super::section::Section;

/// A MongoDB connection string. It may hold a password, so `Debug` and `Display` show only the hosts.
#[derive(Clone, PartialEq, Eq)]
pub struct MongoUri {
    text: String,
    scheme: &'static str,
    hosts: Vec<String>,
}

const SCHEMES: [&str; 2] = ["mongodb://", "mongodb+srv://"];
const ENCODE: &str = "in a user name or password, write each of : / ? # [ ] @ % as % and its two hex digits";

impl MongoUri {
    /// Checks `text`; no server is asked and no name is resolved.
    ///
    /// # Errors
    /// What is the matter and the way out; nothing of `text` that could be secret is repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(scheme) = SCHEMES.into_iter().find(|scheme| text.starts_with(scheme)) else {
            return Err("must begin with mongodb:// or mongodb+srv://".to_owned());
        };
        let rest = &text[scheme.len()..];
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // A `/` in a password would make its first half look like a host, and hosts are printed.
        if tail.contains('@') {
            return Err(format!("has an @ after its hosts; {ENCODE}"));
        }
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let hosts: Vec<String> = hosts.split(',').map(str::to_lowercase).collect();
        if !hosts.iter().all(|host| is_host(host)) {
            return Err(format!("must name each server as host or host:port, with commas between; {ENCODE}"));
        }
        ConnectionString::parse(text).map_err(|error| match user {
            None if !["auth", "pass"].iter().any(|word| tail.to_lowercase().contains(word)) => {
                format!("is refused by the driver: {}", error.kind)
            }
            // The driver's message may quote what must not be seen.
            _ => format!("is refused by the driver; check the options behind the ?, and {ENCODE}"),
        })?;
        Ok(Self {
            text: text.to_owned(),
            scheme,
            hosts: hosts.iter().map(|host| with_port(host, scheme)).collect(),
        })
    }

    /// The whole string, secrets included: only to connect with.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Its servers as lower-case `host:port`; for `mongodb+srv` the name without a port.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }
}

impl fmt::Display for MongoUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme, self.hosts.join(","))
    }
}

impl fmt::Debug for MongoUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MongoUri({self})")
    }
}

/// What a connection string may refer to.
pub(super) struct Context<'a> {
    /// `uri_file` is relative to this.
    pub(super) directory: &'a Path,
    /// Looks up `${NAME}`.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
}

/// Reads `uri` or `uri_file`; `example` is what to write when neither is there.
pub(super) fn read(section: &mut Section<'_, '_>, context: &Context<'_>, example: &str) -> Option<MongoUri> {
    let uri = section.text("uri");
    let file = section.text("uri_file");
    let (key, found) = match (uri, file) {
        (Some(uri), None) => {
            let text = expand(&uri.value, context.env);
            ("uri", Located { value: text, line: uri.line })
        }
        (None, Some(file)) => {
            let text = std::fs::read_to_string(context.directory.join(&file.value))
                .map(|text| text.trim().to_owned())
                .map_err(|error| format!("\"{}\" cannot be read: {error}", file.value));
            ("uri_file", Located { value: text, line: file.line })
        }
        (Some(uri), Some(file)) => {
            // What is wrong with the one is told in the same run, whichever of them is kept.
            let read = expand(&uri.value, context.env).and_then(|text| MongoUri::parse(&text));
            if let Err(message) = read {
                section.problem(uri.line, "uri", message);
            }
            section.problem(file.line, "uri_file", "stands beside uri; keep only one of them");
            return None;
        }
        (None, None) => {
            if !section.has("uri") && !section.has("uri_file") {
                section.missing("uri", example);
            }
            return None;
        }
    };
    match found.value.and_then(|text| MongoUri::parse(&text)) {
        Ok(uri) => Some(uri),
        Err(message) => {
            section.problem(found.line, key, message);
            None
        }
    }
}

/// Replaces each `${NAME}`.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) =
            after.split_once('}').ok_or("has ${ without }; write ${NAME} for an environment variable")?;
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_name {
            return Err("has ${…} around something that is not the name of an environment variable; \
                 use letters, digits and _"
                .to_owned());
        }
        let value = env(name).ok_or_else(|| {
            format!("needs the environment variable {name}, which is not set; set it before the start")
        })?;
        out.push_str(before);
        out.push_str(&value);
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((ip, port)) if ip.parse::<std::net::Ipv6Addr>().is_ok() => ("ip", port.strip_prefix(':')),
        Some(_) => return false,
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    named && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn with_port(host: &str, scheme: &str) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    if has_port || scheme != SCHEMES[0] { host.to_owned() } else { format!("{host}:27017") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_are_printed() {
        let uri = MongoUri::parse("mongodb://me:s3cret@A.example:1,b/?replicaSet=rs0").unwrap();
        assert_eq!(uri.to_string(), "mongodb://a.example:1,b:27017");
        assert_eq!(format!("{uri:?}"), "MongoUri(mongodb://a.example:1,b:27017)");
        assert!(uri.expose().contains("s3cret"));
    }

    #[test]
    fn no_refusal_repeats_a_secret() {
        for text in [
            "postgres://me:s3cret@a/",
            "mongodb://me:s3cret/x@a/",
            "mongodb://me:s3cret@x@a/",
            "mongodb://me:s3%ret@a/",
            "mongodb://me:s3cret@a/?authMechanism=s3cret",
            "mongodb://me:s3cret",
            "mongodb://me:s3cret@",
        ] {
            let error = MongoUri::parse(text).unwrap_err();
            assert!(!error.contains("s3"), "{error}");
        }
    }

    #[test]
    fn variables_are_replaced() {
        let env = |name: &str| (name == "PASS").then(|| "x".to_owned());
        assert_eq!(expand("a${PASS}b${PASS}$c", &env).unwrap(), "axbx$c");
        assert!(expand("${NOPE}", &env).unwrap_err().contains("environment variable NOPE"));
        assert!(expand("${PASS", &env).unwrap_err().contains("without }"));
        assert!(expand("${a b}", &env).unwrap_err().contains("letters, digits"));
    }

    #[test]
    fn hosts_in_all_their_forms() {
        for good in ["a", "a:1", "a.b-c_d:65535", "[::1]", "[::1]:27017", "127.0.0.1:1"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", ":1", "a:", "a:0", "a:65536", "[::1", "[x]:1", "a b", "%2Ftmp%2Fx.sock"] {
            assert!(!is_host(bad), "{bad}");
        }
        assert_eq!(with_port("[::1]", SCHEMES[0]), "[::1]:27017");
        assert_eq!(with_port("name.example", SCHEMES[1]), "name.example");
    }
}
