
/*
 * Copyright (C) The nginx referral module authors
 */


#include <string.h>

#include "referral_redis_reply.h"


const char *
referral_redis_advice(const char *reply)
{
    size_t  i;

    static const struct {
        const char  *prefix;
        const char  *advice;
    } words[] = {
        { "NOAUTH", "it wants a password: --redis-password-file, or the"
          " setting redis_password_file" },
        { "WRONGPASS", "check the password's file and the user in the URL" },
        { "ERR invalid password", "check the password's file" },
        { "ERR AUTH", "it has no password: do not give one" },
        { "ERR Client sent AUTH", "it has no password: do not give one" },
        { "NOPERM", "this user may not do that: see Redis's ACL" },
        { "ERR The user executing the script", "this user may not do that:"
          " see Redis's ACL" },
        { "ERR ACL failure", "this user may not do that: see Redis's ACL" },
        { "DENIED", "it is in protected mode: see its bind and password" },
        { "LOADING", "it is reading its data, which passes" },
        { "BUSY", "a script of somebody keeps it: SCRIPT KILL" },
        { "OOM", "it is at maxmemory: raise that or make room" },
        { "MISCONF", "it cannot save to disk and refuses writes: see its log"
        },
        { "MASTERDOWN", "it has lost its master" },
        { "NOREPLICAS", "it has too few replicas to write" },
        { "READONLY", "this is a replica, give the master's URL" },
        { "MOVED", "this is one node of a cluster, which is not supported" },
        { "CLUSTERDOWN", "it is a cluster, which is not supported" },
        { "CROSSSLOT", "it is a cluster, which is not supported" },
        { "ERR max number of clients", "raise its maxclients" },
        { "ERR DB index", "it has no database of that number: see the URL" }
    };

    for (i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strncmp(reply, words[i].prefix, strlen(words[i].prefix)) == 0) {
            return words[i].advice;
        }
    }

    return NULL;
}
