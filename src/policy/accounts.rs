//! What is said to a whole cluster and must hold on the other one too, when applications come there: users, roles,
//! default concerns.

use super::classify::{Class, classify, is_about_users};

const USER_NOT_FOUND: i32 = 11;
const ROLE_NOT_FOUND: i32 = 31;
const ROLE_ALREADY_EXISTS: i32 = 51_002;
const USER_ALREADY_EXISTS: i32 = 51_003;

/// Whether both clusters must get a command.
#[must_use]
pub fn is_for_both(name: &str) -> bool {
    name == "setDefaultRWConcern" || is_about_users(name) && classify(name) == Class::Ddl
}

/// Whether a cluster that refuses a command with `code` is so already: what it makes is there, or what it
/// changes or removes is not.
#[must_use]
pub fn is_so_already(name: &str, code: i32) -> bool {
    if name.starts_with("create") {
        matches!(code, USER_ALREADY_EXISTS | ROLE_ALREADY_EXISTS)
    } else {
        is_about_users(name) && matches!(code, USER_NOT_FOUND | ROLE_NOT_FOUND)
    }
}

/// The command that takes one back, with the same first value; `None`: nothing does.
#[must_use]
pub fn undo(name: &str) -> Option<&'static str> {
    match name {
        "createUser" => Some("dropUser"),
        "createRole" => Some("dropRole"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_both_clusters() {
        for name in ["createUser", "dropAllRolesFromDatabase", "grantPrivilegesToRole", "setDefaultRWConcern"]
        {
            assert!(is_for_both(name), "{name}");
        }
        for name in ["usersInfo", "rolesInfo", "getDefaultRWConcern", "create", "drop", "killOp"] {
            assert!(!is_for_both(name), "{name}");
        }
    }

    #[test]
    fn a_refusal_may_say_that_nothing_is_left_to_do() {
        assert!(
            is_so_already("createUser", USER_ALREADY_EXISTS)
                && is_so_already("createRole", ROLE_ALREADY_EXISTS)
        );
        assert!(is_so_already("dropUser", USER_NOT_FOUND) && is_so_already("updateRole", ROLE_NOT_FOUND));
        // A role that a new user is to have is missing.
        assert!(!is_so_already("createUser", ROLE_NOT_FOUND));
        assert!(!is_so_already("dropUser", 13) && !is_so_already("setDefaultRWConcern", USER_NOT_FOUND));
    }
}
