//! Configuration files: what they mean, and every way to get them wrong.

use std::path::Path;
use std::time::Duration;

use reshard::config::{Config, StateHome};
use reshard::listener::face::Face;

const SMALLEST: &str = r#"
[listen]
address = "127.0.0.1:27017"
[old]
uri = "mongodb://127.0.0.1:27018/?replicaSet=rs0"
[new]
uri = "mongodb://127.0.0.1:27019/"
[admin]
address = "127.0.0.1:8080"
"#;

fn parse(text: &str) -> Result<Config, String> {
    let env = |name: &str| (name == "OLD_PASSWORD").then(|| "s3cret".to_owned());
    Config::parse(Path::new("r.toml"), text, &env).map_err(|error| error.to_string())
}

/// The errors of the smallest configuration with `from` replaced by `to`.
fn errors(from: &str, to: &str) -> String {
    assert!(SMALLEST.contains(from));
    parse(&SMALLEST.replace(from, to)).expect_err("is refused")
}

#[test]
fn the_smallest_configuration_has_safe_defaults() {
    let config = parse(SMALLEST).unwrap();
    assert_eq!((config.listen.max_connections, config.listen.workers), (10_000, 0));
    assert_eq!(config.old.max_connections, 100);
    assert_eq!(config.new.unwrap().uri.hosts(), ["127.0.0.1:27019"]);
    let migration = config.migration;
    assert_eq!(migration.max_pause, Duration::from_millis(500));
    assert_eq!(migration.mirror_timeout, Duration::from_secs(1));
    assert_eq!(migration.lease, Duration::from_secs(6));
    assert_eq!(migration.hold, Duration::from_secs(7 * 86_400));
    assert_eq!((migration.backfill_parallel, migration.state), (0, StateHome::Old));
}

#[test]
fn the_example_is_the_smallest_configuration_with_its_defaults() {
    let example = Config::load(Path::new("config/example.toml")).unwrap();
    assert_eq!(example, parse(SMALLEST).unwrap());
}

#[test]
fn new_may_be_left_out() {
    let text = SMALLEST.replace("[new]\nuri = \"mongodb://127.0.0.1:27019/\"\n", "");
    assert_eq!(parse(&text).unwrap().new, None);
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_the_lines() {
    let text = r#"
[listen]
adress = "127.0.0.1:27017"
workers = "many"
[old]
uri = "mongodb://127.0.0.1:27018/"
[migrations]
lease_ms = 1
[admin]
address = "localhost"
"#;
    let expected = r#"r.toml:2: listen.address: missing; add address = "127.0.0.1:27017" below [listen]
r.toml:3: listen.adress: unknown key; did you mean "address"?
r.toml:4: listen.workers: must be a whole number from 0 to 1024, not a text
r.toml:7: migrations: unknown section; did you mean "migration"?
r.toml:10: admin.address: "localhost" is not an IP address with a port; write it like "127.0.0.1:8080" or "[::1]:8080""#;
    assert_eq!(parse(text).unwrap_err(), expected);
}

#[test]
fn an_empty_file_tells_what_to_write() {
    let expected = r#"r.toml: listen.address: missing; add address = "127.0.0.1:27017" below [listen]
r.toml: old.uri: missing; add uri = "mongodb://127.0.0.1:27018/" below [old]
r.toml: admin.address: missing; add address = "127.0.0.1:8080" below [admin]"#;
    assert_eq!(parse("").unwrap_err(), expected);
}

#[test]
fn a_mistake_of_syntax_does_not_hide_the_others() {
    let error = errors("[admin]", "[log]\nlevel = loud\nfromat = \"text\"\n[admin]");
    assert!(error.contains("r.toml:9: not valid TOML: "), "{error}");
    assert!(error.contains("r.toml:10: log.fromat: unknown key; did you mean \"format\"?"), "{error}");
}

#[test]
fn a_mistake_of_syntax_never_shows_the_line() {
    let error = errors("\"mongodb://127.0.0.1:27019/\"", "\"mongodb://me:s3cret@a/");
    assert!(error.contains("not valid TOML"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn each_kind_of_wrong_value() {
    let log = |line: &str| errors("[admin]", &format!("[log]\n{line}\n[admin]"));
    assert_eq!(log("level = 3"), "r.toml:9: log.level: must be a text in quotes, not a whole number");
    assert_eq!(log("format = \"xml\""), "r.toml:9: log.format: must be \"text\" or \"json\", not \"xml\"");
    assert!(
        log("level = \"inof\"").starts_with("r.toml:9: log.level: \"inof\" is not a level; write error,")
    );
    assert_eq!(log("color = true"), "r.toml:9: log.color: unknown key; known here: level, format");
    let listen = |line: &str| errors("[old]", &format!("{line}\n[old]"));
    assert_eq!(
        listen("max_connections = 0"),
        "r.toml:4: listen.max_connections: must be a whole number from 1 to 1000000, not 0"
    );
    assert!(listen("max_connections = 99999999999999999999").contains("from 1 to 1000000, not 99999"));
    assert!(listen("max_connections = -1").ends_with("not -1"));
    assert_eq!(
        listen("allow_insecure = \"yes\""),
        "r.toml:4: listen.allow_insecure: must be true or false without quotes, not a text"
    );
    assert_eq!(
        parse("listen = 3").unwrap_err().lines().next().unwrap(),
        "r.toml:1: listen: must be a section, not a whole number; write [listen]"
    );
}

#[test]
fn ports_that_others_can_reach_are_refused() {
    let admin = errors("127.0.0.1:8080", "0.0.0.0:8080");
    assert_eq!(
        admin,
        "r.toml:9: admin.address: 0.0.0.0:8080 can be reached from other machines. Until authentication \
         exists the admin port refuses to listen beyond loopback; write \"127.0.0.1:8080\""
    );
    let listen = errors("127.0.0.1:27017", "0.0.0.0:27017");
    assert_eq!(
        listen,
        "r.toml:3: listen.address: 0.0.0.0:27017 can be reached by everybody on other machines; write \
         \"127.0.0.1:27017\", or below [listen] add tls and login = true, tls with a ca_file, or allow_insecure = \
         true if the network is trusted"
    );
    let meant = SMALLEST.replace("127.0.0.1:27017\"", "0.0.0.0:27017\"\nallow_insecure = true");
    assert!(parse(&meant).is_ok());
}

#[test]
fn files_for_tls_are_read_when_a_file_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let files = reshard_testbed::TlsFiles::generate(folder.path()).unwrap();
    let (server, ca) = (files.server.display(), files.ca.display());
    let tls = |tls: &str| with_listen(&format!("tls = {tls}"), "");
    let read = tls(&format!("{{ certificate_key_file = \"{server}\" }}")).unwrap().listen.tls.unwrap();
    assert_eq!((read.certificate_key_file, read.ca_file), (files.server.clone(), None));
    let errors = [
        ("{}", "needs certificate_key_file = \"server.pem\": a certificate and its key".to_owned()),
        ("\"server.pem\"", "must be like { certificate_key_file = \"server.pem\" }, not a text".to_owned()),
        (
            "{ certificate_key_file = \"no.pem\" }",
            "no.pem: No such file or directory (os error 2)".to_owned(),
        ),
        (
            &format!("{{ certificate_key_file = \"{ca}\" }}"),
            format!("{ca}: no PEM private key (without password)"),
        ),
    ];
    for (written, error) in errors {
        let found = tls(written).unwrap_err();
        assert!(found.starts_with(&format!("r.toml:4: listen.tls: {error}")), "{found}");
    }
    let unknown = tls(&format!("{{ certificate_key_file = \"{server}\", key = \"x\" }}")).unwrap_err();
    assert!(unknown.contains("key is not known; known here: certificate_key_file, ca_file"), "{unknown}");

    // Encryption alone keeps nobody out.
    let open =
        |tls: &str| parse(&SMALLEST.replace("127.0.0.1:27017\"", &format!("0.0.0.0:27017\"\ntls = {tls}")));
    assert!(open(&format!("{{ certificate_key_file = \"{server}\" }}")).is_err());
    assert!(open(&format!("{{ certificate_key_file = \"{server}\", ca_file = \"{ca}\" }}")).is_ok());
    assert!(open(&format!("{{ certificate_key_file = \"{server}\" }}\nlogin = true")).is_ok());
    let plain = SMALLEST.replace("127.0.0.1:27017\"", "0.0.0.0:27017\"\nlogin = true");
    assert!(parse(&plain).is_err(), "what users do would be seen by everybody");
}

/// The smallest configuration with more below `[listen]`, and more sections.
fn with_listen(lines: &str, sections: &str) -> Result<Config, String> {
    parse(&SMALLEST.replace("[old]", &format!("{lines}\n{sections}[old]")))
}

#[test]
fn each_listener_has_a_face() {
    let set = "face = \"replica-set\"\nset_name = \"rs0\"\nhost = \"DB1.internal:27117\"\ntags = { dc = \"east\" }\n\
               secondaries = [\n  { address = \"127.0.0.1:27118\" },\n\
               { address = \"0.0.0.0:27119\", host = \"db3:1\", tags = { dc = \"west\", rack = \"1\" } },\n]\n";
    let sections = format!(
        "[listeners.legacy]\naddress = \"0.0.0.0:27117\"\nallow_insecure = true\n{set}\
         [listeners.kubernetes]\naddress = \"127.0.0.1:27200\"\nface = \"load-balanced\"\n"
    );
    let config = with_listen("face = \"mongos\"", &sections).unwrap();
    assert_eq!(config.listen.face, Face::Mongos);
    let find = |name: &str| config.listeners.iter().find(|extra| extra.name == name).unwrap();
    assert_eq!(find("kubernetes").face, Face::LoadBalanced);
    let Face::ReplicaSet(set) = &find("legacy").face else { panic!("{config:?}") };
    assert_eq!((set.name.as_str(), set.host.as_deref()), ("rs0", Some("db1.internal:27117")));
    assert_eq!(set.tags, [("dc".to_owned(), "east".to_owned())]);
    let hosts: Vec<_> =
        set.secondaries.iter().map(|other| (other.host.as_deref(), other.tags.len())).collect();
    assert_eq!(hosts, [(None, 0), (Some("db3:1"), 2)]);
}

#[test]
fn each_way_to_get_a_face_wrong() {
    let listen = |lines: &str| with_listen(lines, "").unwrap_err();
    assert_eq!(
        listen("face = \"router\""),
        "r.toml:4: listen.face: must be \"mongos\" or \"replica-set\" or \"load-balanced\", not \"router\""
    );
    assert_eq!(
        listen("set_name = \"rs0\""),
        "r.toml:4: listen.set_name: belongs to a replica set; add face = \"replica-set\", or remove it"
    );
    assert_eq!(
        listen("face = \"replica-set\""),
        "r.toml:2: listen.set_name: missing; add set_name = \"rs0\" below [listen]"
    );
    let set = |lines: &str| listen(&format!("face = \"replica-set\"\nset_name = \"rs0\"\n{lines}"));
    assert_eq!(
        set("host = \"db1\""),
        "r.toml:6: listen.host: \"db1\" is not a name with a port; write it like \"db.internal:27017\""
    );
    assert_eq!(
        set("secondaries = [{ adress = \"127.0.0.1:1\" }, 3]"),
        "r.toml:6: listen.secondaries[0].address: missing; add address = \"127.0.0.1:27118\" in its braces\n\
         r.toml:6: listen.secondaries[0].adress: unknown key; did you mean \"address\"?\n\
         r.toml:6: listen.secondaries[1]: must be like { address = \"...\" }, not a whole number"
    );
    assert_eq!(
        set("secondaries = [\n{ address = \"127.0.0.1:1\", host = \"a:1\" },\n\
             { address = \"127.0.0.1:1\", host = \"A:1\" }]"),
        "r.toml:8: listen.secondaries[1].address: port 1 is already that of listen.secondaries[0].address; \
         choose another\n\
         r.toml:8: listen.secondaries[1].host: a:1 is the host of another member already; each needs its own"
    );
    let tags = set("tags = { dc = 1 }");
    assert_eq!(tags, "r.toml:6: listen.tags: dc must be a text in quotes, not a whole number");
    let open = set("secondaries = [{ address = \"0.0.0.0:1\", host = \"a:1\" }]");
    assert!(open.starts_with("r.toml:6: listen.secondaries[0].address: 0.0.0.0:1 can be reached"), "{open}");
    assert!(
        open.contains("below [listen] add tls and login = true, tls with a ca_file, or allow_insecure"),
        "{open}"
    );

    let extra =
        |name: &str, lines: &str| with_listen("", &format!("[listeners.{name}]\n{lines}\n")).unwrap_err();
    assert_eq!(
        extra("two", "workers = 1"),
        "r.toml:5: listeners.two.address: missing; add address = \"127.0.0.1:27117\" below [listeners.two]\n\
         r.toml:6: listeners.two.workers: unknown key; known here: address, allow_insecure, face, set_name, host, \
         tags, secondaries, tls, login"
    );
    assert_eq!(
        extra("two", "address = \"127.0.0.1:27017\""),
        "r.toml:6: listeners.two.address: port 27017 is already that of listen.address; choose another"
    );
    let unnamed = extra(
        "two",
        "address = \"0.0.0.0:1\"\nallow_insecure = true\nface = \"replica-set\"\nset_name = \"rs0\"",
    );
    assert!(
        unnamed.starts_with("r.toml:5: listeners.two.host: missing; drivers connect to what"),
        "{unnamed}"
    );
    let name = extra("\"a b\"", "address = \"127.0.0.1:1\"");
    assert!(name.starts_with("r.toml:5: listeners.a b: a listener's name is of letters"), "{name}");
    assert_eq!(
        parse(&format!("listeners = {{ two = 3 }}\n{SMALLEST}")).unwrap_err(),
        "r.toml:1: listeners.two: must be a section, not a whole number; write [listeners.two]"
    );
    assert_eq!(
        with_listen("", "[listeners.two]\naddress = \"127.0.0.1:27019\"\n").unwrap_err(),
        "r.toml:10: new.uri: 127.0.0.1:27019 is listeners.two.address: reshard would connect to itself"
    );
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(
        errors("127.0.0.1:8080", "127.0.0.1:27017"),
        "r.toml:9: admin.address: port 27017 is already that of listen.address; choose another"
    );
    assert_eq!(
        errors("127.0.0.1:27019/", "other:1,127.0.0.1:27018/?tls=true"),
        "r.toml:7: new.uri: 127.0.0.1:27018 is a server of old too; new must be another cluster (leave [new] \
         out for a plain proxy)"
    );
    assert_eq!(
        errors("127.0.0.1:27019", "localhost:27017"),
        "r.toml:7: new.uri: 127.0.0.1:27017 is listen.address: reshard would connect to itself"
    );
    assert_eq!(
        errors("[new]\nuri = \"mongodb://127.0.0.1:27019/\"", "[migration]\nstate = \"new\""),
        "r.toml:7: migration.state: \"new\" needs a section [new]; add it or write \"old\""
    );
    assert_eq!(
        errors("[admin]", "[migration]\nmax_pause_ms = 2000\nlease_ms = 1500\n[admin]"),
        "r.toml:9: migration.max_pause_ms: 2000 ms is not less than lease_ms (1500 ms): a lease would end in \
         the middle; lower it or raise lease_ms"
    );
}

/// What contradicts each other is told beside other mistakes, as far as the values that it takes are good.
#[test]
fn contradictions_are_told_beside_other_mistakes() {
    let text = "[listen]\naddress = \"0.0.0.0:27017\"\nworkers = -1\n[old]\nuri = \"mongodb://a:1/\"\n\
                [new]\nuri = \"mongodb://b:1,a:1/\"\n[admin]\naddress = \"nowhere\"\n\
                [migration]\nmax_pause_ms = 5000\nmirror_timeout_ms = 5000\nlease_ms = 4000\nhold_days = 999\n";
    let keys = |text: &str| -> Vec<String> {
        let errors = parse(text).unwrap_err();
        let key = |line: &str| line.split(": ").nth(1).unwrap_or_default().to_owned();
        errors.lines().map(key).collect()
    };
    assert_eq!(
        keys(text),
        [
            "listen.address",
            "listen.workers",
            "new.uri",
            "admin.address",
            "migration.max_pause_ms",
            "migration.mirror_timeout_ms",
            "migration.hold_days",
        ]
    );
    // Nothing is said by a value that is wrong itself.
    let unsure =
        text.replace("lease_ms = 4000", "lease_ms = 4").replace("workers = -1", "allow_insecure = 1");
    let unsure = unsure.replace("mongodb://a:1/", "postgres://a:1/");
    assert_eq!(
        keys(&unsure),
        ["listen.allow_insecure", "old.uri", "admin.address", "migration.lease_ms", "migration.hold_days"]
    );
}

#[test]
fn secrets_come_from_the_environment_or_a_file_and_are_never_printed() {
    let with_env = SMALLEST.replace("127.0.0.1:27018", "me:${OLD_PASSWORD}@127.0.0.1:27018");
    let config = parse(&with_env).unwrap();
    assert!(config.old.uri.expose().contains("me:s3cret@"));
    assert!(!format!("{config:?}").contains("s3cret"));

    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("old.uri"), "mongodb://me:s3cret@a/\n").unwrap();
    let file = directory.path().join("r.toml");
    let from_file =
        SMALLEST.replace("uri = \"mongodb://127.0.0.1:27018/?replicaSet=rs0\"", "uri_file = \"old.uri\"");
    std::fs::write(&file, from_file).unwrap();
    assert_eq!(Config::load(&file).unwrap().old.uri.expose(), "mongodb://me:s3cret@a/");
}

#[test]
fn each_way_to_get_a_connection_string_wrong() {
    let old = |to: &str| errors("uri = \"mongodb://127.0.0.1:27018/?replicaSet=rs0\"", to);
    assert_eq!(
        old("uri = \"mongodb://me:${NOPE}@a/\""),
        "r.toml:5: old.uri: needs the environment variable NOPE, which is not set; set it before the start"
    );
    assert_eq!(
        old("uri = \"mongodb://a\"\nuri_file = \"old.uri\""),
        "r.toml:6: old.uri_file: stands beside uri; keep only one of them"
    );
    assert_eq!(
        old("uri = \"mongodb://me:${NOPE}@a/\"\nuri_file = \"old.uri\"").lines().count(),
        2,
        "both are told in one run"
    );
    assert!(
        old("uri_file = \"no/such\"").starts_with("r.toml:5: old.uri_file: \"no/such\" cannot be read: ")
    );
    assert_eq!(old("uri = 3"), "r.toml:5: old.uri: must be a text in quotes, not a whole number");
    assert_eq!(
        old("uri = \"postgres://me:s3cret@a/\""),
        "r.toml:5: old.uri: must begin with mongodb:// or mongodb+srv://"
    );
    let host = old("uri = \"mongodb://me:s3/cret@a/\"");
    assert!(host.starts_with("r.toml:5: old.uri: has an @ after its hosts; in a user name or"), "{host}");
    let driver = old("uri = \"mongodb://a/?readPreference=sideways\"");
    assert!(driver.starts_with("r.toml:5: old.uri: is refused by the driver: "), "{driver}");
}

#[test]
fn a_file_that_is_not_there() {
    let error = Config::load(Path::new("/no/such/file.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/no/such/file.toml: cannot be read: "), "{error}");
}
