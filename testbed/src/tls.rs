//! A throw-away certificate authority and a server certificate for 127.0.0.1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const CA_CONFIG: &str = "\
[req]
distinguished_name = dn
x509_extensions = ca
prompt = no
[dn]
CN = reshard testbed CA
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
";

/// Members of a set are clients of each other too, hence both key usages.
const SERVER_CONFIG: &str = "\
[req]
distinguished_name = dn
prompt = no
[dn]
O = reshard
CN = 127.0.0.1
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature,keyEncipherment
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = IP:127.0.0.1,DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
";

/// The files mongod and its clients need.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate of the authority.
    pub ca: PathBuf,
    /// Server certificate followed by its key.
    pub server: PathBuf,
}

impl TlsFiles {
    /// Makes them in `folder` with the `openssl` tool.
    ///
    /// # Errors
    /// When a file cannot be written, or `openssl` is not there or fails.
    pub fn generate(folder: &Path) -> Result<Self> {
        fs::write(folder.join("ca.cnf"), CA_CONFIG)?;
        fs::write(folder.join("server.cnf"), SERVER_CONFIG)?;
        let key = ["-newkey", "rsa:2048", "-nodes"];
        let mut authority = vec!["req", "-x509", "-config", "ca.cnf", "-days", "30"];
        authority.extend(key);
        authority.extend(["-keyout", "ca.key", "-out", "ca.pem"]);
        openssl(folder, &authority)?;
        let mut request = vec!["req", "-new", "-config", "server.cnf"];
        request.extend(key);
        request.extend(["-keyout", "server.key", "-out", "server.csr"]);
        openssl(folder, &request)?;
        let sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
                    -extfile server.cnf -extensions server -out server.crt";
        openssl(folder, &sign.split_whitespace().collect::<Vec<_>>())?;
        let server = folder.join("server.pem");
        let certificate = fs::read_to_string(folder.join("server.crt"))?;
        fs::write(&server, certificate + &fs::read_to_string(folder.join("server.key"))?)?;
        Ok(Self { ca: folder.join("ca.pem"), server })
    }
}

fn openssl(folder: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("openssl")
        .args(args)
        .current_dir(folder)
        .output()
        .context("running openssl (is it there?)")?;
    if !output.status.success() {
        bail!("openssl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
