//! Hostile clients where one must log in, and where one must speak TLS.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Binary, Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use mongodb::Client;
use reshard::cluster::scram::{self, Hash, Keys};
use reshard::cluster::uri::{Credential, Secret};
use reshard::wire::op_msg::{OpMsg, build};
use reshard_testbed::TlsFiles;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::exchange::{Told, exchange, greet, within};
use super::live::{AT_ONCE, Calm, Field, frames};
use super::raw::read;
use super::{Dice, corpus, mutate, seed, twist};

/// Each is sent twice.
const FRAMES: usize = 500;
/// What may be kept of them when they come once more.
const MORE_THE_SECOND_TIME: u64 = 6 << 20;
/// The code of what needs a login first.
const UNAUTHORIZED: i64 = 13;

/// An address that nobody listens on.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// How far a client goes before it is hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Approach {
    /// Not at all.
    Stranger,
    /// It has begun a login, whose next message is the hostile one.
    HalfWay,
    /// It is logged in.
    Inside,
}

/// What one client does.
struct Visit {
    approach: Approach,
    /// Instead of the proof that it knows the password, or after it.
    bytes: Vec<u8>,
}

/// Messages of logins.
fn logins() -> Vec<Vec<u8>> {
    let is_one = |name: &str| ["sasl", "speculative"].iter().any(|it| name.contains(it));
    let found: Vec<_> =
        corpus().into_iter().filter(|(name, _)| is_one(name)).map(|(_, frame)| frame).collect();
    assert!(found.len() > 5);
    found
}

fn visits(dice: &mut Dice) -> Vec<Visit> {
    let (all, logins) = (frames(), logins());
    let visit = |number: usize| {
        let seeds = if number % 4 < 2 { &logins } else { &all };
        let bytes = if dice.below(2) == 0 { mutate(dice, seeds) } else { twist(dice, seeds) };
        let approach = match number % 5 {
            0 | 1 => Approach::Stranger,
            2 | 3 => Approach::HalfWay,
            _ => Approach::Inside,
        };
        Visit { approach, bytes }
    };
    (0..FRAMES).map(visit).collect()
}

/// One request of a login; the message in its answer.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), body: &RawDocumentBuf) -> Result<Vec<u8>> {
    stream.write_all(&build(2, 0, 0, body.as_bytes(), None)).await?;
    let (_, bytes) = read(stream).await?;
    let body = RawDocument::from_bytes(&bytes[OpMsg::parse(&bytes)?.body])?;
    ensure!(body.get_f64("ok")? == 1.0, "{body:?}");
    Ok(body.get_binary("payload")?.bytes.to_vec())
}

fn payload(text: &str) -> Binary {
    Binary { subtype: 0.into(), bytes: text.as_bytes().to_vec() }
}

/// Begins the login of the application; the message that would end it.
async fn begin(stream: &mut TcpStream, keys: &tokio::sync::OnceCell<Keys>) -> Result<RawDocumentBuf> {
    let hash = Hash::Sha256;
    let mine = scram::Exchange::new(hash, "app", "rOprNGfwEbeRWgbNEkqO".to_owned());
    let start = rawdoc! {
        "saslStart": 1, "mechanism": hash.mechanism_name(), "payload": payload(&mine.first()),
        "options": { "skipEmptyExchange": true }, "$db": "shop",
    };
    let answer = ask(stream, &start).await?;
    let challenge = mine.challenge(&answer)?;
    let (username, source) = ("app".to_owned(), "shop".to_owned());
    let credential = Credential { username, password: Secret::new("secret"), source, mechanism: None };
    let keys = keys.get_or_init(async || hash.keys(&credential, &challenge.salt, challenge.iterations)).await;
    let proof = mine.proof(&challenge, keys);
    Ok(rawdoc! { "saslContinue": 1, "conversationId": 1, "payload": payload(&proof.message), "$db": "shop" })
}

/// One client at the door; nobody is let in who has not shown the password.
async fn knock(address: SocketAddr, visit: &Visit, keys: &tokio::sync::OnceCell<Keys>) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    greet(&mut stream).await?;
    if visit.approach != Approach::Stranger {
        let proof = begin(&mut stream, keys).await?;
        if visit.approach == Approach::Inside {
            ask(&mut stream, &proof).await?;
        }
    }
    let look = rawdoc! { "find": "items", "filter": { "_id": 1 }, "limit": 1, "$db": "shop" };
    let Told { last, .. } = exchange(&mut stream, &visit.bytes, &look).await?;
    match last {
        // Whoever is inside may have logged out.
        Some(answer) if visit.approach != Approach::Inside && answer.code != Some(UNAUTHORIZED) => {
            bail!("let in: {answer:?}")
        }
        _ => Ok(()),
    }
}

/// Sends everything twice; what is kept of the second time is nothing.
async fn twice(field: &Field, send_all: impl AsyncFn() -> Result<()>) -> Result<()> {
    let before = field.memory()?;
    let mut kept = [0; 2];
    for memory in &mut kept {
        send_all().await?;
        field.still_runs().await?;
        *memory = field.memory()?;
    }
    println!("memory: {} MB before, {} kB then, {} kB later", before >> 20, kept[0] >> 10, kept[1] >> 10);
    ensure!(kept[1] < kept[0] + MORE_THE_SECOND_TIME, "{kept:?}");
    Ok(())
}

async fn at_the_login(field: &Field, door: SocketAddr, seed: u64) -> Result<()> {
    let old = field.old.client().await?;
    let user = doc! { "createUser": "app", "pwd": "secret", "roles": ["readWrite"] };
    old.database("shop").run_command(user).await?;
    let users = |client: Client| client.database("admin").collection::<Document>("system.users");
    let stored = users(old).find_one(doc! { "user": "app" }).await?.context("the user")?;
    users(field.new.client().await?).insert_one(stored).await?;
    let visits = visits(&mut Dice(seed));
    let keys = tokio::sync::OnceCell::new();
    twice(field, async || {
        let all = stream::iter(&visits).map(|visit| {
            let knocked = within(knock(door, visit, &keys));
            async move {
                let why = || format!("RESHARD_SEED={seed}: {:?} {:02x?}", visit.approach, visit.bytes);
                knocked.await.with_context(why)
            }
        });
        all.buffer_unordered(AT_ONCE).try_collect().await
    })
    .await?;
    // And who may come in still does.
    let client = Client::with_uri_str(format!("mongodb://app:secret@{door}/?authSource=shop")).await?;
    let items = client.database("shop").collection::<Document>("items");
    ensure!(items.find_one(doc! { "_id": 1 }).await?.is_some());
    Ok(())
}

/// A client at the door that speaks TLS, or one that does not.
async fn encrypted(door: SocketAddr, tls: &TlsConnector, bytes: &[u8], speaks_it: bool) -> Result<usize> {
    let mut stream = TcpStream::connect(door).await?;
    let ping = rawdoc! { "ping": 1, "$db": "admin" };
    if !speaks_it {
        let Told { replies, last } = exchange(&mut stream, bytes, &ping).await.unwrap_or_default();
        ensure!(replies.is_empty() && last.is_none(), "answered in the clear");
        return Ok(0);
    }
    let mut stream = tls.connect(ServerName::try_from("localhost")?, stream).await?;
    greet(&mut stream).await?;
    Ok(exchange(&mut stream, bytes, &ping).await?.replies.len())
}

async fn at_the_tls(field: &Field, door: SocketAddr, files: &TlsFiles, seed: u64) -> Result<()> {
    let mut roots = RootCertStore::empty();
    let content = std::fs::read(&files.ca)?;
    roots.add(rustls_pemfile::certs(&mut content.as_slice()).next().context("a certificate")??)?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(config));
    let (mut dice, frames) = (Dice(seed), frames());
    let one = |number| if number % 2 == 0 { mutate(&mut dice, &frames) } else { twist(&mut dice, &frames) };
    let damaged: Vec<_> = (0..FRAMES).map(one).collect();
    twice(field, async || {
        let all = stream::iter(damaged.iter().enumerate()).map(|(number, bytes)| {
            let sent = within(encrypted(door, &tls, bytes, number % 8 != 7));
            async move { sent.await.with_context(|| format!("RESHARD_SEED={seed}: {bytes:02x?}")) }
        });
        let answers: Vec<usize> = all.buffer_unordered(AT_ONCE).try_collect().await?;
        let answered = answers.iter().filter(|count| **count > 0).count();
        println!("{answered} of {FRAMES} were answered");
        ensure!(answered > FRAMES / 4);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_who_must_log_in_or_speak_tls() -> Result<()> {
    let seed = seed();
    let folder = tempfile::tempdir()?;
    let files = TlsFiles::generate(folder.path())?;
    let (login, tls) = (free()?, free()?);
    let more = format!(
        "[listeners.login]\naddress = \"{login}\"\nlogin = true\n[listeners.tls]\naddress = \"{tls}\"\n\
         tls = {{ certificate_key_file = {:?} }}\n",
        files.server
    );
    let field = Field::with("doors", &more).await?;
    let calm = Calm::start(&field).await?;
    let memory = field.memory()?;
    let outcome = async {
        at_the_login(&field, login, seed).await.context("where one must log in")?;
        at_the_tls(&field, tls, &files, seed).await.context("where one must speak TLS")
    };
    let outcome = outcome.await;
    field.still_runs().await?;
    outcome?;
    calm.stop().await?;
    field.all_is_as_before(memory).await
}
