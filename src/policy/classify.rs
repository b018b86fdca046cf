//! What kind of command a name stands for. Everything that routes, retries or counts goes by the class.

/// The kinds of commands, by what the proxy does with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Answered by the proxy itself: `hello` in its forms.
    Hello,
    /// Login and logout of the client.
    Authentication,
    /// Writes of single documents, and of many by filter.
    Write,
    /// Reads that a driver may retry, and whose server the read preference chooses.
    Read,
    /// Reads of the server's state; safe to repeat, follow the read preference.
    Diagnostic,
    /// A pipeline that writes a collection (`$out`, `$merge`, `mapReduce`).
    PipelineWrite,
    /// `explain` of another command.
    Explain,
    /// `getMore`: goes where its cursor lives.
    GetMore,
    /// `killCursors`: goes where its cursors live.
    KillCursors,
    /// `commitTransaction`.
    Commit,
    /// `abortTransaction`.
    Abort,
    /// Changes of collections, indexes, views, users and roles.
    Ddl,
    /// The life of sessions: goes to every cluster.
    SessionAdmin,
    /// Administration of servers and of the cluster.
    Admin,
    /// Not known to the proxy: forwarded, counted, never repeated.
    Unknown,
}

impl Class {
    /// Every class, in the order of [`Self::index`].
    pub const ALL: [Self; 15] = [
        Self::Hello,
        Self::Authentication,
        Self::Write,
        Self::Read,
        Self::Diagnostic,
        Self::PipelineWrite,
        Self::Explain,
        Self::GetMore,
        Self::KillCursors,
        Self::Commit,
        Self::Abort,
        Self::Ddl,
        Self::SessionAdmin,
        Self::Admin,
        Self::Unknown,
    ];

    /// Its place in [`Self::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Authentication => "authentication",
            Self::Write => "write",
            Self::Read => "read",
            Self::Diagnostic => "diagnostic",
            Self::PipelineWrite => "pipeline_write",
            Self::Explain => "explain",
            Self::GetMore => "get_more",
            Self::KillCursors => "kill_cursors",
            Self::Commit => "commit",
            Self::Abort => "abort",
            Self::Ddl => "ddl",
            Self::SessionAdmin => "session_admin",
            Self::Admin => "admin",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the command changes nothing, so that it may run twice, or be dropped while it runs.
    #[must_use]
    pub fn harmless(self) -> bool {
        matches!(self, Self::Read | Self::Diagnostic | Self::Explain)
    }

    /// Whether a read preference chooses its server.
    #[must_use]
    pub fn follows_read_preference(self) -> bool {
        matches!(self, Self::Read | Self::Diagnostic | Self::Explain)
    }
}

/// The class of the command `name`. Names are case-sensitive, as servers take them.
/// An `aggregate` is a [`Class::Read`] here, and one that writes a [`Class::PipelineWrite`] to its caller; a
/// `mapReduce` the other way round.
#[must_use]
pub fn classify(name: &str) -> Class {
    match name {
        "hello" | "isMaster" | "ismaster" => Class::Hello,
        "saslStart" | "saslContinue" | "authenticate" | "logout" => Class::Authentication,
        "insert" | "update" | "delete" | "findAndModify" | "findandmodify" | "bulkWrite" => Class::Write,
        "find" | "aggregate" | "count" | "distinct" | "listCollections" | "listIndexes" | "listDatabases" => {
            Class::Read
        }
        "mapReduce" | "mapreduce" => Class::PipelineWrite,
        "explain" => Class::Explain,
        "getMore" => Class::GetMore,
        "killCursors" => Class::KillCursors,
        "commitTransaction" => Class::Commit,
        "abortTransaction" => Class::Abort,
        "endSessions"
        | "refreshSessions"
        | "killSessions"
        | "killAllSessions"
        | "killAllSessionsByPattern" => Class::SessionAdmin,
        _ => classify_rare(name),
    }
}

/// Names that are too rare to be worth a place in the match above.
fn classify_rare(name: &str) -> Class {
    let tables =
        [(DIAGNOSTIC, Class::Diagnostic), (DDL, Class::Ddl), (USERS, Class::Ddl), (ADMIN, Class::Admin)];
    let found = tables.into_iter().find(|(names, _)| names.contains(&name));
    found.map_or(Class::Unknown, |(_, class)| class)
}

/// Every name that has a class, but for those that are written out in [`classify`].
pub fn rare_names() -> impl Iterator<Item = &'static str> {
    [DIAGNOSTIC, DDL, USERS, ADMIN].into_iter().flatten().copied()
}

/// Whether a command is about users and roles: what it names is no collection.
#[must_use]
pub fn is_about_users(name: &str) -> bool {
    USERS.contains(&name) || matches!(name, "usersInfo" | "rolesInfo")
}

/// Changes of collections and indexes.
#[rustfmt::skip]
const DDL: &[&str] = &[
    "create", "collMod", "createIndexes", "dropIndexes", "deleteIndexes", "drop", "dropDatabase",
    "renameCollection", "convertToCapped", "cloneCollectionAsCapped", "reIndex", "compact",
    "createSearchIndexes", "updateSearchIndex", "dropSearchIndex", "setIndexCommitQuorum",
];

/// Changes of users and roles.
#[rustfmt::skip]
const USERS: &[&str] = &[
    "createUser", "updateUser", "dropUser", "dropAllUsersFromDatabase", "grantRolesToUser", "revokeRolesFromUser",
    "createRole", "updateRole", "dropRole", "dropAllRolesFromDatabase", "grantPrivilegesToRole",
    "revokePrivilegesFromRole", "grantRolesToRole", "revokeRolesFromRole",
];

/// Reads of the server's state.
#[rustfmt::skip]
const DIAGNOSTIC: &[&str] = &[
    "ping", "buildInfo", "buildinfo", "serverStatus", "dbStats", "dbstats", "collStats", "collstats",
    "dataSize", "datasize", "hostInfo", "getLog", "getParameter", "getCmdLineOpts", "listCommands",
    "connectionStatus", "whatsmyuri", "currentOp", "top", "usersInfo", "rolesInfo", "replSetGetStatus",
    "replSetGetConfig", "connPoolStats", "features", "dbHash", "dbhash", "listShards", "getShardMap",
    "balancerStatus", "getDefaultRWConcern", "planCacheListFilters", "startSession", "getnonce",
];

/// Changes of servers and of the cluster.
#[rustfmt::skip]
const ADMIN: &[&str] = &[
    "killOp", "fsync", "fsyncUnlock", "shutdown", "setParameter", "configureFailPoint", "validate",
    "profile", "logRotate", "setFeatureCompatibilityVersion", "setDefaultRWConcern", "replSetStepDown",
    "replSetReconfig", "replSetInitiate", "replSetFreeze", "replSetMaintenance", "replSetSyncFrom",
    "replSetStepUp", "replSetResizeOplog", "appendOplogNote", "planCacheClear", "planCacheClearFilters",
    "planCacheSetFilter", "enableSharding", "shardCollection", "reshardCollection",
    "refineCollectionShardKey", "addShard", "removeShard", "movePrimary", "moveChunk", "split",
    "mergeChunks", "balancerStart", "balancerStop", "addShardToZone", "removeShardFromZone",
    "updateZoneKeyRange", "flushRouterConfig", "invalidateUserCache", "rotateCertificates",
    "dropConnections",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_class() {
        let table = [
            ("isMaster", Class::Hello),
            ("saslStart", Class::Authentication),
            ("insert", Class::Write),
            ("findandmodify", Class::Write),
            ("bulkWrite", Class::Write),
            ("find", Class::Read),
            ("listIndexes", Class::Read),
            ("mapReduce", Class::PipelineWrite),
            ("explain", Class::Explain),
            ("getMore", Class::GetMore),
            ("killCursors", Class::KillCursors),
            ("commitTransaction", Class::Commit),
            ("abortTransaction", Class::Abort),
            ("endSessions", Class::SessionAdmin),
            ("renameCollection", Class::Ddl),
            ("grantRolesToUser", Class::Ddl),
            ("ping", Class::Diagnostic),
            ("shutdown", Class::Admin),
            ("shardCollection", Class::Admin),
            // Case matters, and what is not known stays unknown.
            ("INSERT", Class::Unknown),
            ("getmore", Class::Unknown),
            ("clusterInsert", Class::Unknown),
            ("", Class::Unknown),
        ];
        for (name, class) in table {
            assert_eq!(classify(name), class, "{name}");
        }
    }

    #[test]
    fn an_index_finds_its_class() {
        for (index, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), index);
        }
    }

    #[test]
    fn nothing_that_changes_data_is_harmless() {
        for class in Class::ALL {
            let harmless = matches!(class, Class::Read | Class::Diagnostic | Class::Explain);
            assert_eq!(class.harmless(), harmless, "{class:?}");
        }
    }
}
