//! `[listen]` and `[listeners.NAME]`: where applications connect, and what they see there.

use std::net::SocketAddr;

use super::reader::Reader;
use super::section::Section;
use super::sections::address;
use super::uri::Context;
use crate::listener::face::{Face, ReplicaSet, Secondary, Tags};
use crate::listener::tls::{self, TlsFiles};
use crate::wire::compressed::{Compressor, Compressors};

/// `[listen]`: where applications connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address to listen on.
    pub address: SocketAddr,
    /// Listening beyond loopback without encryption is meant.
    pub allow_insecure: bool,
    /// What drivers see.
    pub face: Face,
    /// Clients must speak TLS.
    pub tls: Option<TlsFiles>,
    /// Clients must log in, as users of old.
    pub login: bool,
    /// Client connections at the same time, over all listeners; more are refused.
    pub max_connections: u32,
    /// Worker threads; 0 is one for each core.
    pub workers: u32,
    /// How messages are compressed for clients that ask for it.
    pub compressors: Compressors,
}

/// `[listeners.NAME]`: one more address, with a face of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraListener {
    /// Its name.
    pub name: String,
    /// The address to listen on.
    pub address: SocketAddr,
    /// Listening beyond loopback without encryption is meant.
    pub allow_insecure: bool,
    /// What drivers see.
    pub face: Face,
    /// Clients must speak TLS.
    pub tls: Option<TlsFiles>,
    /// Clients must log in, as users of old.
    pub login: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mongos,
    ReplicaSet,
    LoadBalanced,
}

const KINDS: [(&str, Kind); 3] =
    [("mongos", Kind::Mongos), ("replica-set", Kind::ReplicaSet), ("load-balanced", Kind::LoadBalanced)];
/// What only a replica set has.
const OF_SETS: [&str; 4] = ["set_name", "host", "tags", "secondaries"];

pub(super) fn listen(mut section: Section<'_, '_>, context: &Context<'_>) -> Option<Listen> {
    let address = address(&mut section, "127.0.0.1:27017");
    let allow_insecure = section.boolean("allow_insecure", false);
    let face = face(&mut section, address);
    let tls = tls(&mut section, context);
    let login = section.boolean("login", false);
    let max_connections = section.integer("max_connections", 10_000, 1..=1_000_000);
    let workers = section.integer("workers", 0, 0..=1_024);
    let words = Compressor::ALL.map(|one| (one.name(), one));
    let compressors = match section.choices("compressors", &words) {
        Some(chosen) => chosen.into_iter().fold(Compressors::NONE, Compressors::with),
        None => Compressors::ALL,
    };
    section.finish();
    Some(Listen {
        address: address?,
        allow_insecure,
        face: face?,
        tls,
        login,
        max_connections,
        workers,
        compressors,
    })
}

/// Those that can be read; of the others the problems are noted.
pub(super) fn extra(reader: &mut Reader<'_>, context: &Context<'_>) -> Vec<ExtraListener> {
    let mut found = Vec::new();
    reader.sections_of("listeners", |name, mut section| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name == "listen" || !name.chars().all(allowed) {
            let message =
                "a listener's name is of letters, digits, '-' and '_', and not \"listen\"; rename it";
            section.problem_here(message);
        }
        let address = address(&mut section, "127.0.0.1:27117");
        let allow_insecure = section.boolean("allow_insecure", false);
        let face = face(&mut section, address);
        let tls = tls(&mut section, context);
        let login = section.boolean("login", false);
        section.finish();
        if let (Some(address), Some(face)) = (address, face) {
            found.push(ExtraListener { name: name.to_owned(), address, allow_insecure, face, tls, login });
        }
    });
    found
}

fn face(section: &mut Section<'_, '_>, address: Option<SocketAddr>) -> Option<Face> {
    let kind = section.chosen("face", Kind::Mongos, &KINDS);
    if kind == Some(Kind::ReplicaSet) {
        return replica_set(section, address).map(Face::ReplicaSet);
    }
    for key in OF_SETS {
        if section.refuse(key) && kind.is_some() {
            section.problem_at(key, "belongs to a replica set; add face = \"replica-set\", or remove it");
        }
    }
    match kind? {
        Kind::LoadBalanced => Some(Face::LoadBalanced),
        Kind::Mongos | Kind::ReplicaSet => Some(Face::Mongos),
    }
}

fn replica_set(section: &mut Section<'_, '_>, address: Option<SocketAddr>) -> Option<ReplicaSet> {
    let name = section.required("set_name", "\"rs0\"").map(|written| written.value);
    if name.as_ref().is_some_and(|name| name.is_empty() || name.contains('\0')) {
        section.problem_at(
            "set_name",
            "must be the name after replicaSet= in the applications' connection strings",
        );
    }
    let host = host(section, address);
    let tags = tags(section);
    let mut secondaries = Vec::new();
    section.each_of("secondaries", |mut inner| {
        let address = self::address(&mut inner, "127.0.0.1:27118");
        let host = self::host(&mut inner, address);
        let tags = self::tags(&mut inner);
        inner.finish();
        secondaries.extend(address.zip(host).map(|(address, host)| Secondary { address, host, tags }));
    });
    Some(ReplicaSet { name: name?, host: host?, tags, secondaries })
}

/// The advertised name; `Some(None)` when the address itself is one.
fn host(section: &mut Section<'_, '_>, address: Option<SocketAddr>) -> Option<Option<String>> {
    let Some(written) = section.text("host") else {
        let is_reachable = address.is_none_or(|address| !address.ip().is_unspecified());
        if !is_reachable && !section.has("host") {
            let message = "missing; drivers connect to what a replica set says of itself, and nobody can connect to \
                           every address of a machine: add host = \"NAME:PORT\", as applications reach it";
            section.problem_at("host", message);
        }
        return (is_reachable && !section.has("host")).then_some(None);
    };
    let host = written.value.to_lowercase();
    let (name, port) = host.rsplit_once(':').unwrap_or_default();
    let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || "/@,\0".contains(c));
    if is_name && port.parse::<u16>().is_ok_and(|port| port > 0) && !name.starts_with("0.0.0.0") {
        return Some(Some(host));
    }
    let message =
        format!("\"{}\" is not a name with a port; write it like \"db.internal:27017\"", written.value);
    section.problem(written.line, "host", message);
    None
}

/// `tls = { certificate_key_file = "...", ca_file = "..." }`; files are relative to the configuration.
fn tls(section: &mut Section<'_, '_>, context: &Context<'_>) -> Option<TlsFiles> {
    if !section.has("tls") {
        section.refuse("tls");
        return None;
    }
    let (mut certificate_key_file, mut ca_file) = (None, None);
    for (name, file) in section.texts("tls", "{ certificate_key_file = \"server.pem\" }") {
        let file = Some(context.directory.join(file));
        match name.as_str() {
            "certificate_key_file" => certificate_key_file = file,
            "ca_file" => ca_file = file,
            other => {
                let message = format!("{other} is not known; known here: certificate_key_file, ca_file");
                section.problem_at("tls", message);
            }
        }
    }
    let Some(certificate_key_file) = certificate_key_file else {
        section.problem_at("tls", "needs certificate_key_file = \"server.pem\": a certificate and its key");
        return None;
    };
    let files = TlsFiles { certificate_key_file, ca_file };
    if let Err(why) = tls::acceptor(&files) {
        section.problem_at("tls", why);
    }
    Some(files)
}

fn tags(section: &mut Section<'_, '_>) -> Tags {
    let mut tags = Tags::new();
    for (name, value) in section.texts("tags", "{ dc = \"east\" }") {
        if name.contains('\0') {
            section.problem_at("tags", "a tag's name cannot have a zero byte");
        }
        tags.push((name, value));
    }
    tags
}
