//! Encrypted clients.

mod raw;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc, rawdoc};
use futures::TryStreamExt as _;
use mongodb::Client;
use raw::{ask_as, reply_within};
use reshard::app::{Builder, Proxy};
use reshard::listener::tls::TlsFiles as Shown;
use reshard::wire::op_msg::build;
use reshard::{cluster, listener};
use reshard_testbed::{ReplicaSet, TlsFiles, wait_for};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const LONG: Duration = Duration::from_secs(60);

struct Bed {
    set: ReplicaSet,
    proxy: Proxy,
    files: TlsFiles,
    _folder: tempfile::TempDir,
}

impl Bed {
    /// A proxy whose clients speak TLS, and show a certificate if `certificates`.
    async fn start(certificates: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let files = TlsFiles::generate(folder.path())?;
        let set = ReplicaSet::builder("tls").start().await?;
        let mut settings = listener::Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        let ca_file = certificates.then(|| files.ca.clone());
        settings.entrances[0].tls = Some(Shown { certificate_key_file: files.server.clone(), ca_file });
        let proxy = Builder::new(cluster::Settings::parse(&set.uri()).await?, settings).start().await?;
        Ok(Self { set, proxy, files, _folder: folder })
    }

    /// The connection string, with options.
    fn uri(&self, options: &str) -> String {
        let ca = self.files.ca.display();
        format!(
            "mongodb://{}/?tls=true&tlsCAFile={ca}&serverSelectionTimeoutMS=3000{options}",
            self.proxy.address()
        )
    }

    /// A connection without a driver.
    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.files.ca)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.proxy.address()).await?;
        let name = ServerName::try_from("localhost")?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    }
}

fn certificate(file: &Path) -> Result<CertificateDer<'static>> {
    let content = std::fs::read(file)?;
    Ok(rustls_pemfile::certs(&mut content.as_slice()).next().context("a certificate")??)
}

async fn ping(uri: &str) -> Result<()> {
    Client::with_uri_str(uri).await?.database("admin").run_command(doc! { "ping": 1 }).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_works_over_tls_and_nothing_else_does() -> Result<()> {
    let bed = Bed::start(false).await?;
    let things = Client::with_uri_str(bed.uri("")).await?.database("shop").collection("things");
    let large = "x".repeat(10 << 20);
    things.insert_one(doc! { "_id": -1, "large": &large }).await?;
    things.insert_many((0..5_000).map(|id| doc! { "_id": id, "text": "y".repeat(200) })).await?;
    let found: Vec<Document> = things.find(doc! {}).batch_size(100).await?.try_collect().await?;
    ensure!(found.len() == 5_001 && found[0].get_str("large")? == large);
    let many = (0..50).map(|id| {
        let things = things.clone();
        tokio::spawn(async move { things.find_one(doc! { "_id": id }).await })
    });
    for found in futures::future::try_join_all(many).await? {
        ensure!(found?.is_some());
    }
    let address = bed.proxy.address();
    ensure!(
        ping(&format!("mongodb://{address}/?serverSelectionTimeoutMS=1000")).await.is_err(),
        "not encrypted"
    );
    let unknown = format!("mongodb://{address}/?tls=true&serverSelectionTimeoutMS=1000");
    ensure!(ping(&unknown).await.is_err(), "an authority that the client does not know");
    ensure!(bed.proxy.shutdown().await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_in_one_record_or_in_pieces_are_all_answered() -> Result<()> {
    let bed = Bed::start(false).await?;
    let mut stream = bed.connect().await?;
    let ping = rawdoc! { "ping": 1, "$db": "admin" };
    // More than one read takes, all of it decrypted at once.
    let padded = rawdoc! { "ping": 1, "$db": "admin", "comment": "c".repeat(1_000) };
    let together: Vec<u8> = (0..14).flat_map(|number| build(number, 0, 0, padded.as_bytes(), None)).collect();
    stream.write_all(&together).await?;
    stream.flush().await?;
    for number in 0..14 {
        let (header, _) = reply_within(&mut stream, LONG).await?;
        ensure!(header.response_to == number);
    }
    for byte in build(20, 0, 0, ping.as_bytes(), None) {
        stream.write_all(&[byte]).await?;
        stream.flush().await?;
    }
    ensure!(reply_within(&mut stream, LONG).await?.0.response_to == 20);
    ask_as(&mut stream, 21, &ping, LONG).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_stops_its_read() -> Result<()> {
    let bed = Bed::start(false).await?;
    let direct = bed.set.client().await?;
    direct.database("shop").collection("c").insert_one(doc! { "_id": 1 }).await?;
    let runs = async || {
        let stages =
            [doc! { "$currentOp": {} }, doc! { "$match": { "command.comment": "leaves", "op": "query" } }];
        let found: Vec<Document> = direct.database("admin").aggregate(stages).await?.try_collect().await?;
        anyhow::Ok(!found.is_empty())
    };
    let long = rawdoc! { "find": "c", "filter": { "$where": "sleep(60000) || true" }, "comment": "leaves", "$db": "shop" };
    for says_so in [true, false] {
        let mut leaves = bed.connect().await?;
        leaves.write_all(&build(1, 0, 0, long.as_bytes(), None)).await?;
        leaves.flush().await?;
        wait_for("the read to run", LONG, &runs).await?;
        if says_so {
            leaves.shutdown().await?;
        }
        drop(leaves);
        wait_for("the read to end", Duration::from_secs(30), || async { Ok(!runs().await?) }).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_ca_file_clients_show_a_certificate() -> Result<()> {
    let bed = Bed::start(true).await?;
    let certificate = bed.files.server.display();
    ping(&bed.uri(&format!("&tlsCertificateKeyFile={certificate}"))).await?;
    ensure!(ping(&bed.uri("")).await.is_err(), "no certificate");
    let folder = tempfile::tempdir()?;
    let stranger = TlsFiles::generate(folder.path())?;
    let foreign = ping(&bed.uri(&format!("&tlsCertificateKeyFile={}", stranger.server.display()))).await;
    ensure!(foreign.is_err(), "a certificate of another authority");
    Ok(())
}
