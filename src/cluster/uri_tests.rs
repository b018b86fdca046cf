use super::*;

async fn parsed(uri: &str) -> Settings {
    Settings::parse(uri).await.unwrap()
}

async fn refused(uri: &str) -> String {
    Settings::parse(uri).await.unwrap_err().to_string()
}

#[tokio::test]
async fn everything_in_one() {
    let settings = parsed(
        "mongodb://anna:s%3Acret@A.example,b.example:27018/app?replicaSet=x&authSource=users\
         &authMechanism=SCRAM-SHA-256&tls=true&tlsCAFile=/ca.pem&maxPoolSize=7&minPoolSize=3&appName=me\
         &serverSelectionTimeoutMS=1500&connectTimeoutMS=2500&retryWrites=true&w=majority",
    )
    .await;
    assert_eq!(settings.seeds, ["a.example:27017".into(), "b.example:27018".into()] as [ServerId; 2]);
    assert_eq!(settings.replica_set.as_deref(), Some("x"));
    let credential = settings.credential.clone().unwrap();
    assert_eq!((&*credential.username, credential.password.reveal()), ("anna", "s:cret"));
    assert_eq!((&*credential.source, credential.mechanism), ("users", Some(Mechanism::ScramSha256)));
    assert_eq!(settings.tls.clone().unwrap().ca_file.unwrap().to_str(), Some("/ca.pem"));
    assert_eq!((settings.min_pool_size, settings.max_pool_size, &*settings.app_name), (3, 7, "me"));
    assert_eq!(settings.server_selection_timeout, Duration::from_millis(1500));
    assert_eq!(settings.connect_timeout, Duration::from_millis(2500));
    assert!(!format!("{settings:?}").contains("cret"), "{settings:?}");
}

#[tokio::test]
async fn defaults() {
    let settings = parsed("mongodb://[::1]:5/").await;
    assert_eq!(&*settings.seeds[0], "[::1]:5");
    assert_eq!((settings.max_pool_size, settings.direct, settings.credential), (100, false, None));
    let settings = parsed("mongodb://u:p@h/app?directConnection=true").await;
    assert!(settings.direct);
    assert_eq!(settings.credential.unwrap().source, "app");
    assert_eq!(parsed("mongodb://u:p@h").await.credential.unwrap().source, "admin");
}

#[tokio::test]
async fn what_is_not_supported_is_named_with_a_way_out() {
    for (uri, option, way_out) in [
        ("mongodb://h/?zlibCompressionLevel=9", "zlibCompressionLevel", "remove it"),
        ("mongodb://h/?loadBalanced=true", "loadBalanced", "addresses of the servers"),
        ("mongodb://h/?readPreference=secondary", "readPreference", "applications"),
        ("mongodb://h/?readConcernLevel=majority", "readConcernLevel", "applications"),
        ("mongodb://h/?w=1", "w=majority", "applications"),
        ("mongodb://u:p@h/?authMechanism=PLAIN", "authMechanism=PLAIN", "SCRAM-SHA-256"),
        ("mongodb://u:p@h/?authMechanism=MONGODB-AWS", "authMechanism=MONGODB-AWS", "SCRAM-SHA-256"),
        ("mongodb://h/?authMechanism=MONGODB-X509", "MONGODB-X509", "tls=true"),
    ] {
        let error = refused(uri).await;
        assert!(error.contains(option) && error.contains(way_out), "{uri}: {error}");
    }
}

#[tokio::test]
async fn errors_do_not_show_the_password() {
    for uri in [
        "mongodb://u:hush!@/db",
        "mongodb://u:hu:sh!@h/?nonsense=1",
        "mongodb://u:hush%@h/",
        "mongodb://u:hu@sh!@h/",
        "mongo://u:hush!@h",
    ] {
        let error = refused(uri).await;
        assert!(!error.contains("sh!") && !error.contains("hush"), "{uri}: {error}");
    }
}
