/* An application with libmongoc. It knows no proxy, only what the phase of a migration refuses.
 *
 * Environment: RESHARD_URI, RESHARD_PHASE (plain, dual, reads, half, moved), RESHARD_OLD, RESHARD_NEW, and
 * RESHARD_ACROSS: the phase that begins in the middle of this run; it says "ready" then and reads a line. */

#include <mongoc/mongoc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REFUSED = 115, DUPLICATE = 11000, CLUSTER_TIMEOUT = 10000 };

static const char *PHASES[] = {"plain", "dual", "reads", "half", "moved"};
static const char *phase;
static const char *across;
static char run[200]; /* Of the check that runs. */
static bool migrates, mixed, moved;
static mongoc_client_t *client;
static mongoc_collection_t *items, *accounts, *feed, *tags;
static bson_error_t error;

#define NEED(condition) need ((condition), #condition, __func__, __LINE__)

static void need (bool holds, const char *what, const char *function, int line)
{
   if (!holds) {
      printf ("FAILED in phase %s: %s, line %d: %s (%u: %s)\n", phase, function, line, what, error.code, error.message);
      exit (1);
   }
}

/* Documents live until the check ends. */
static bson_t *kept[100000];
static size_t kept_count;

static void forget (void)
{
   while (kept_count > 0) {
      bson_destroy (kept[--kept_count]);
   }
}

static bson_t *keep (bson_t *document)
{
   NEED (document && kept_count < sizeof kept / sizeof *kept);
   return kept[kept_count++] = document;
}

/* A document from JSON, with the arguments of printf. */
static bson_t *doc (const char *format, ...)
{
   char text[2000];
   va_list arguments;
   va_start (arguments, format);
   vsnprintf (text, sizeof text, format, arguments);
   va_end (arguments);
   return keep (bson_new_from_json ((const uint8_t *) text, -1, &error));
}

static int64_t number (const bson_t *document, const char *path)
{
   bson_iter_t iter, found;
   if (!bson_iter_init (&iter, document) || !bson_iter_find_descendant (&iter, path, &found)) {
      return -1;
   }
   return bson_iter_as_int64 (&found);
}

static bool is_refused (bool succeeded)
{
   return !succeeded && error.code == REFUSED && strstr (error.message, "reshard: ");
}

static int64_t count (mongoc_collection_t *collection, const bson_t *filter)
{
   return mongoc_collection_count_documents (collection, filter, NULL, NULL, NULL, &error);
}

static int64_t deleted (mongoc_collection_t *collection, const bson_t *filter)
{
   bson_t reply;
   NEED (mongoc_collection_delete_many (collection, filter, NULL, &reply, &error));
   int64_t all = number (&reply, "deletedCount");
   bson_destroy (&reply);
   return all;
}

/* A field of the only document that matches; -1 where there is none. */
static int64_t field (mongoc_collection_t *collection, const bson_t *filter, const char *name)
{
   const bson_t *found;
   mongoc_cursor_t *cursor = mongoc_collection_find_with_opts (collection, filter, NULL, NULL);
   int64_t value = mongoc_cursor_next (cursor, &found) ? number (found, name) : -1;
   NEED (!mongoc_cursor_error (cursor, &error));
   mongoc_cursor_destroy (cursor);
   return value;
}

static void one_document (void)
{
   bson_t *by_id = doc ("{\"_id\": \"%s\"}", run), reply;
   NEED (mongoc_collection_insert_one (items, doc ("{\"_id\": \"%s\", \"n\": 1}", run), NULL, NULL, &error));
   NEED (!mongoc_collection_insert_one (items, by_id, NULL, NULL, &error) && error.code == DUPLICATE);
   NEED (mongoc_collection_update_one (items, by_id, doc ("{\"$inc\": {\"n\": 2}, \"$set\": {\"l\": [1, 2, 3]}}"), NULL, &reply, &error));
   NEED (number (&reply, "matchedCount") == 1 && number (&reply, "modifiedCount") == 1);
   bson_destroy (&reply);
   NEED (mongoc_collection_update_one (items, by_id, doc ("{\"$set\": {\"l.$[big]\": 9}}"),
                                       doc ("{\"arrayFilters\": [{\"big\": {\"$gt\": 1}}]}"), NULL, &error));
   NEED (field (items, by_id, "n") == 3 && field (items, by_id, "l.2") == 9);
   NEED (mongoc_collection_replace_one (items, by_id, doc ("{\"n\": 7}"), NULL, NULL, &error));
   NEED (field (items, by_id, "n") == 7 && field (items, by_id, "l.2") == -1);
   NEED (mongoc_collection_update_one (items, doc ("{\"_id\": \"%s-up\"}", run), doc ("{\"$inc\": {\"n\": 1}}"),
                                       doc ("{\"upsert\": true}"), NULL, &error));
   NEED (field (items, doc ("{\"_id\": \"%s-up\"}", run), "n") == 1);
   NEED (deleted (items, doc ("{\"_id\": {\"$in\": [\"%s\", \"%s-up\"]}}", run, run)) == 2);
}

static void bulk (void)
{
   for (int ordered = 0; ordered < 2; ordered++) {
      bson_t *options = doc ("{\"ordered\": %s}", ordered ? "true" : "false"), reply;
      mongoc_bulk_operation_t *all = mongoc_collection_create_bulk_operation_with_opts (items, options);
      for (int n = 0; n < 6; n++) {
         /* The fourth is there already. */
         mongoc_bulk_operation_insert (all, doc ("{\"_id\": \"%s-%d\", \"run\": \"%s\"}", run, n == 3 ? 0 : n, run));
      }
      NEED (mongoc_bulk_operation_execute (all, &reply, &error) == 0 && error.code == DUPLICATE);
      NEED (number (&reply, "nInserted") == (ordered ? 3 : 5) && number (&reply, "writeErrors.0.index") == 3);
      bson_destroy (&reply);
      mongoc_bulk_operation_destroy (all);
      all = mongoc_collection_create_bulk_operation_with_opts (items, options);
      mongoc_bulk_operation_update_one_with_opts (all, doc ("{\"_id\": \"%s-0\"}", run), doc ("{\"$set\": {\"a\": 1}}"), NULL, &error);
      mongoc_bulk_operation_update_many_with_opts (all, doc ("{\"run\": \"%s\"}", run), doc ("{\"$set\": {\"b\": 1}}"), NULL, &error);
      mongoc_bulk_operation_replace_one_with_opts (all, doc ("{\"_id\": \"%s-x\"}", run), doc ("{\"run\": \"%s\"}", run),
                                                   doc ("{\"upsert\": true}"), &error);
      mongoc_bulk_operation_remove_one_with_opts (all, doc ("{\"_id\": \"%s-1\"}", run), NULL, &error);
      NEED (mongoc_bulk_operation_execute (all, &reply, &error));
      NEED (number (&reply, "nUpserted") == 1 && number (&reply, "nRemoved") == 1);
      NEED (number (&reply, "nMatched") == 1 + (ordered ? 3 : 5));
      bson_destroy (&reply);
      mongoc_bulk_operation_destroy (all);
      NEED (deleted (items, doc ("{\"run\": \"%s\"}", run)) == (ordered ? 3 : 5));
   }
}

static void insert_many (mongoc_collection_t *collection, int many)
{
   const bson_t *documents[1000];
   for (int n = 0; n < many; n++) {
      documents[n] = doc ("{\"_id\": \"%s-%03d\", \"run\": \"%s\", \"n\": %d, \"email\": \"%s-%d\"}", run, n, run, n, run, n);
   }
   NEED (mongoc_collection_insert_many (collection, documents, many, NULL, NULL, &error));
}

/* Reads a cursor from its document `from` on to its end. */
static void read_on (mongoc_cursor_t *cursor, int from, int to)
{
   const bson_t *found;
   for (int n = from; n < to; n++) {
      NEED (mongoc_cursor_next (cursor, &found) && number (found, "n") == n);
   }
}

static void is_at_its_end (mongoc_cursor_t *cursor)
{
   const bson_t *found;
   NEED (!mongoc_cursor_next (cursor, &found) && !mongoc_cursor_error (cursor, &error));
   mongoc_cursor_destroy (cursor);
}

static mongoc_cursor_t *in_order (mongoc_collection_t *collection)
{
   return mongoc_collection_find_with_opts (collection, doc ("{\"run\": \"%s\"}", run),
                                            doc ("{\"sort\": {\"n\": 1}, \"batchSize\": 17}"), NULL);
}

static void cursors (void)
{
   insert_many (items, 500);
   mongoc_cursor_t *cursor = in_order (items);
   read_on (cursor, 0, 500);
   is_at_its_end (cursor);
   cursor = mongoc_collection_aggregate (items, MONGOC_QUERY_NONE,
                                         doc ("{\"pipeline\": [{\"$match\": {\"run\": \"%s\"}}, {\"$sort\": {\"n\": 1}}]}", run),
                                         doc ("{\"batchSize\": 23}"), NULL);
   read_on (cursor, 0, 500);
   is_at_its_end (cursor);
   /* One that is given up. */
   cursor = in_order (items);
   read_on (cursor, 0, 5);
   mongoc_cursor_destroy (cursor);
   NEED (count (items, doc ("{\"run\": \"%s\", \"n\": {\"$lt\": 100}}", run)) == 100);
   NEED (deleted (items, doc ("{\"run\": \"%s\"}", run)) == 500);
}

static void aggregates (void)
{
   const bson_t *found;
   insert_many (items, 30);
   NEED (mongoc_collection_insert_one (tags, doc ("{\"_id\": \"%s\", \"n\": 3}", run), NULL, NULL, &error));
   mongoc_cursor_t *cursor = mongoc_collection_aggregate (
      items, MONGOC_QUERY_NONE,
      doc ("{\"pipeline\": [{\"$match\": {\"run\": \"%s\"}}, {\"$group\": {\"_id\": {\"$mod\": [\"$n\", 3]}, \"all\": {\"$sum\": 1}, "
           "\"most\": {\"$max\": \"$n\"}}}, {\"$sort\": {\"_id\": 1}}]}", run), NULL, NULL);
   for (int n = 0; n < 3; n++) {
      NEED (mongoc_cursor_next (cursor, &found) && number (found, "all") == 10 && number (found, "most") == 27 + n);
   }
   is_at_its_end (cursor);
   cursor = mongoc_collection_aggregate (
      items, MONGOC_QUERY_NONE,
      doc ("{\"pipeline\": [{\"$match\": {\"_id\": \"%s-003\"}}, {\"$lookup\": {\"from\": \"tags\", \"localField\": \"n\", "
           "\"foreignField\": \"n\", \"as\": \"tags\"}}]}", run), NULL, NULL);
   bool joined = mongoc_cursor_next (cursor, &found);
   if (mixed || moved) {
      NEED (is_refused (!mongoc_cursor_error (cursor, &error)));
   } else {
      NEED (joined && number (found, "tags.0.n") == 3);
   }
   mongoc_cursor_destroy (cursor);
   NEED (mongoc_collection_drop (tags, &error));
   NEED (deleted (items, doc ("{\"run\": \"%s\"}", run)) == 30);
}

static int64_t modified (mongoc_collection_t *collection, const bson_t *query, const bson_t *update)
{
   bson_t reply;
   mongoc_find_and_modify_opts_t *options = mongoc_find_and_modify_opts_new ();
   mongoc_find_and_modify_opts_set_update (options, update);
   mongoc_find_and_modify_opts_set_flags (options, MONGOC_FIND_AND_MODIFY_RETURN_NEW);
   bool done = mongoc_collection_find_and_modify_with_opts (collection, query, options, &reply, &error);
   int64_t value = done ? number (&reply, "value.n") : -1;
   bson_destroy (&reply);
   mongoc_find_and_modify_opts_destroy (options);
   return value;
}

static void find_and_modify (void)
{
   insert_many (items, 3);
   bson_t *inc = doc ("{\"$inc\": {\"n\": 100}}");
   NEED (modified (items, doc ("{\"_id\": \"%s-002\"}", run), inc) == 102);
   /* Elsewhere it would keep writes of this collection from being divided. */
   if (mixed) {
      NEED (is_refused (modified (items, doc ("{\"run\": \"%s\", \"n\": 102}", run), inc) >= 0));
   }
   NEED (deleted (items, doc ("{\"run\": \"%s\"}", run)) == 3);
   insert_many (accounts, 3);
   NEED (modified (accounts, doc ("{\"run\": \"%s\", \"n\": 2}", run), inc) == 102);
   NEED (deleted (accounts, doc ("{\"run\": \"%s\"}", run)) == 3);
}

static bool transfer (mongoc_client_session_t *session, void *unused, bson_t **reply, bson_error_t *why)
{
   (void) unused;
   (void) reply;
   bson_t *options = bson_new ();
   bool done = mongoc_client_session_append (session, options, why) &&
               mongoc_collection_update_one (accounts, doc ("{\"_id\": \"%s-000\"}", run), doc ("{\"$inc\": {\"n\": -30}}"), options, NULL, why) &&
               mongoc_collection_update_one (accounts, doc ("{\"email\": \"%s-1\"}", run), doc ("{\"$inc\": {\"n\": 30}}"), options, NULL, why);
   bson_destroy (options);
   return done;
}

static void transactions (void)
{
   bson_t *options = bson_new ();
   insert_many (accounts, 2);
   NEED (!mongoc_collection_insert_one (accounts, doc ("{\"email\": \"%s-1\"}", run), NULL, NULL, &error) && error.code == DUPLICATE);
   mongoc_client_session_t *session = mongoc_client_start_session (client, NULL, &error);
   NEED (session && mongoc_client_session_with_transaction (session, transfer, NULL, NULL, NULL, &error));
   NEED (field (accounts, doc ("{\"_id\": \"%s-000\"}", run), "n") == -30);
   NEED (field (accounts, doc ("{\"_id\": \"%s-001\"}", run), "n") == 31);
   NEED (mongoc_client_session_append (session, options, &error));
   NEED (mongoc_client_session_start_transaction (session, NULL, &error));
   NEED (mongoc_collection_delete_one (accounts, doc ("{\"_id\": \"%s-000\"}", run), options, NULL, &error));
   NEED (mongoc_client_session_abort_transaction (session, &error));
   NEED (count (accounts, doc ("{\"run\": \"%s\"}", run)) == 2);
   NEED (mongoc_client_session_start_transaction (session, NULL, &error));
   NEED (mongoc_collection_insert_one (accounts, doc ("{\"_id\": \"%s-tx\", \"run\": \"%s\"}", run, run), options, NULL, &error));
   NEED (mongoc_client_session_commit_transaction (session, NULL, &error));
   /* It may be repeated. */
   NEED (mongoc_client_session_commit_transaction (session, NULL, &error));
   if (mixed) {
      NEED (mongoc_client_session_start_transaction (session, NULL, &error));
      NEED (is_refused (mongoc_collection_insert_one (items, doc ("{\"_id\": \"%s\"}", run), options, NULL, &error)));
      NEED (mongoc_client_session_abort_transaction (session, &error));
   }
   mongoc_client_session_destroy (session);
   bson_destroy (options);
   NEED (deleted (accounts, doc ("{\"run\": \"%s\"}", run)) == 3);
}

/* The next such command on each cluster fails so; NULL: none does. */
static void fail_point (const char *data)
{
   const char *clusters[] = {getenv ("RESHARD_OLD"), getenv ("RESHARD_NEW")};
   for (int n = 0; n < 2; n++) {
      mongoc_client_t *backend = mongoc_client_new (clusters[n]);
      bson_t *point = data ? doc ("{\"configureFailPoint\": \"failCommand\", \"mode\": {\"times\": 1}, \"data\": %s}", data)
                           : doc ("{\"configureFailPoint\": \"failCommand\", \"mode\": \"off\"}");
      NEED (mongoc_client_command_simple (backend, "admin", point, NULL, NULL, &error));
      mongoc_client_destroy (backend);
   }
}

static void failures_are_retried (void)
{
   const char *ways[] = {
      "\"closeConnection\": true",
      "\"errorCode\": 10107, \"errorLabels\": [\"RetryableWriteError\"]",
      "\"errorCode\": 91, \"errorLabels\": [\"RetryableWriteError\"]",
      "\"errorCode\": 11602, \"errorLabels\": [\"RetryableWriteError\"]",
      "\"errorCode\": 89, \"errorLabels\": [\"RetryableWriteError\"]",
   };
   char data[300];
   for (size_t n = 0; n < sizeof ways / sizeof *ways; n++) {
      bson_t *by_id = doc ("{\"_id\": \"%s-%zu\"}", run, n);
#define FAIL(command) \
   snprintf (data, sizeof data, "{\"failCommands\": [\"" command "\"], %s, \"namespace\": \"app.items\"}", ways[n]), fail_point (data)
      FAIL ("insert");
      NEED (mongoc_collection_insert_one (items, doc ("{\"_id\": \"%s-%zu\", \"n\": 0}", run, n), NULL, NULL, &error));
      FAIL ("update");
      NEED (mongoc_collection_update_one (items, by_id, doc ("{\"$inc\": {\"n\": 1}}"), NULL, NULL, &error));
      FAIL ("findAndModify");
      NEED (modified (items, by_id, doc ("{\"$inc\": {\"n\": 1}}")) == 2);
      FAIL ("find");
      NEED (field (items, by_id, "n") == 2);
      FAIL ("aggregate");
      NEED (count (items, by_id) == 1);
      FAIL ("delete");
      bson_t reply;
      NEED (mongoc_collection_delete_one (items, by_id, NULL, &reply, &error) && number (&reply, "deletedCount") == 1);
      bson_destroy (&reply);
#undef FAIL
      fail_point (NULL);
   }
}

static void next_event (mongoc_change_stream_t *stream, const char *kind)
{
   const bson_t *event;
   bson_iter_t iter;
   for (int n = 0; n < 100; n++) {
      if (mongoc_change_stream_next (stream, &event)) {
         NEED (bson_iter_init_find (&iter, event, "operationType") && !strcmp (bson_iter_utf8 (&iter, NULL), kind));
         return;
      }
      NEED (!mongoc_change_stream_error_document (stream, &error, NULL));
   }
   NEED (!"an event in time");
}

static mongoc_change_stream_t *watched (const char *id)
{
   const bson_t *none;
   bson_t *pipeline = doc ("{\"pipeline\": [{\"$match\": {\"documentKey._id\": \"%s\"}}]}", id);
   mongoc_change_stream_t *stream = mongoc_collection_watch (feed, pipeline, doc ("{\"maxAwaitTimeMS\": 200}"));
   NEED (!mongoc_change_stream_next (stream, &none) && !mongoc_change_stream_error_document (stream, &error, NULL));
   return stream;
}

static void change_streams (void)
{
   mongoc_change_stream_t *stream = watched (run);
   NEED (mongoc_collection_insert_one (feed, doc ("{\"_id\": \"%s\"}", run), NULL, NULL, &error));
   next_event (stream, "insert");
   NEED (mongoc_collection_update_one (feed, doc ("{\"_id\": \"%s\"}", run), doc ("{\"$set\": {\"n\": 1}}"), NULL, NULL, &error));
   next_event (stream, "update");
   NEED (deleted (feed, doc ("{\"_id\": \"%s\"}", run)) == 1);
   next_event (stream, "delete");
   mongoc_change_stream_destroy (stream);
}

static void grid_fs (void)
{
   static char content[700000], back[sizeof content];
   for (size_t n = 0; n < sizeof content; n++) {
      content[n] = (char) (n * 2654435761u >> 7);
   }
   bson_value_t id;
   mongoc_database_t *app = mongoc_client_get_database (client, "app");
   mongoc_gridfs_bucket_t *bucket = mongoc_gridfs_bucket_new (app, doc ("{\"bucketName\": \"media\"}"), NULL, &error);
   mongoc_stream_t *upload = mongoc_gridfs_bucket_open_upload_stream (bucket, run, NULL, &id, &error);
   NEED (upload && mongoc_stream_write (upload, content, sizeof content, 0) == (ssize_t) sizeof content);
   mongoc_stream_destroy (upload);
   mongoc_stream_t *download = mongoc_gridfs_bucket_open_download_stream (bucket, &id, &error);
   NEED (download && mongoc_stream_read (download, back, sizeof back, sizeof back, 0) == (ssize_t) sizeof back);
   NEED (!memcmp (content, back, sizeof content));
   mongoc_stream_destroy (download);
   NEED (mongoc_gridfs_bucket_delete_by_id (bucket, &id, &error));
   bson_value_destroy (&id);
   mongoc_gridfs_bucket_destroy (bucket);
   mongoc_database_destroy (app);
}

static mongoc_client_t *connected (const char *options)
{
   char text[300];
   snprintf (text, sizeof text, "%s?serverSelectionTimeoutMS=%d%s", getenv ("RESHARD_URI"), CLUSTER_TIMEOUT, options);
   mongoc_client_t *made = mongoc_client_new (text);
   mongoc_client_set_error_api (made, MONGOC_ERROR_API_VERSION_2);
   return made;
}

static void compressed (void)
{
   const char *ways[] = {"&compressors=snappy", "&compressors=zlib", "&compressors=zstd"};
   static char text[100000];
   memset (text, 'x', sizeof text - 1);
   for (int n = 0; n < 3; n++) {
      mongoc_client_t *own = connected (ways[n]);
      mongoc_collection_t *collection = mongoc_client_get_collection (own, "app", "items");
      bson_t *large = doc ("{\"_id\": \"%s-%d\", \"n\": 5}", run, n), *by_id = doc ("{\"_id\": \"%s-%d\"}", run, n);
      BSON_APPEND_UTF8 (large, "text", text);
      NEED (mongoc_collection_insert_one (collection, large, NULL, NULL, &error));
      NEED (field (collection, by_id, "n") == 5);
      NEED (deleted (collection, by_id) == 1);
      mongoc_collection_destroy (collection);
      mongoc_client_destroy (own);
   }
}

static void without_acknowledgement (void)
{
   bson_t *by_id = doc ("{\"_id\": \"%s\"}", run);
   NEED (mongoc_collection_insert_one (items, by_id, doc ("{\"writeConcern\": {\"w\": 0}}"), NULL, &error));
   for (int n = 0; n < 200 && count (items, by_id) == 0; n++) {
      usleep (50000);
   }
   NEED (deleted (items, by_id) == 1);
}

static mongoc_client_pool_t *pool;

/* A connection is taken and given back for each of its operations. */
static void *churn (void *number_of_thread)
{
   bson_error_t why;
   for (int n = 0; n < 50; n++) {
      mongoc_client_t *own = mongoc_client_pool_pop (pool);
      mongoc_collection_t *collection = mongoc_client_get_collection (own, "app", "items");
      bson_t id = BSON_INITIALIZER;
      char text[300];
      snprintf (text, sizeof text, "%s-%d-%d", run, *(int *) number_of_thread, n);
      BSON_APPEND_UTF8 (&id, "_id", text);
      bool done = mongoc_collection_insert_one (collection, &id, NULL, NULL, &why) &&
                  mongoc_collection_delete_one (collection, &id, NULL, NULL, &why);
      bson_destroy (&id);
      mongoc_collection_destroy (collection);
      mongoc_client_pool_push (pool, own);
      if (!done) {
         return "failed";
      }
   }
   return NULL;
}

static void pools (void)
{
   pthread_t threads[6];
   int numbers[6];
   mongoc_uri_t *uri = mongoc_uri_new (getenv ("RESHARD_URI"));
   mongoc_uri_set_option_as_int32 (uri, MONGOC_URI_MAXPOOLSIZE, 3);
   pool = mongoc_client_pool_new (uri);
   for (int n = 0; n < 6; n++) {
      numbers[n] = n;
      NEED (pthread_create (&threads[n], NULL, churn, &numbers[n]) == 0);
   }
   for (int n = 0; n < 6; n++) {
      void *failed;
      NEED (pthread_join (threads[n], &failed) == 0 && !failed);
   }
   mongoc_client_pool_destroy (pool);
   mongoc_uri_destroy (uri);
}

static void collections (void)
{
   char name[300];
   snprintf (name, sizeof name, "%s-other", run);
   mongoc_database_t *app = mongoc_client_get_database (client, "app");
   mongoc_collection_t *other = mongoc_database_create_collection (app, name, NULL, &error);
   NEED (other && mongoc_database_has_collection (app, name, &error));
   NEED (mongoc_collection_drop (other, &error) && !mongoc_database_has_collection (app, name, &error));
   mongoc_collection_destroy (other);
   if (migrates) {
      NEED (is_refused (mongoc_collection_drop (items, &error)));
      NEED (is_refused (mongoc_database_drop (app, &error)));
   }
   mongoc_database_destroy (app);
   NEED (!mongoc_client_command_simple (client, "admin", doc ("{\"noSuchCommand\": 1}"), NULL, NULL, &error) && error.code == 59);
}

/* Documents of all earlier phases are there, and this one leaves some. */
static void what_was_kept (void)
{
   int now = 0;
   while (strcmp (PHASES[now], phase)) {
      for (int n = 0; n < 20; n++) {
         NEED (field (items, doc ("{\"_id\": \"c-kept-%s-%d\"}", PHASES[now], n), "n") == 2 * n);
      }
      now++;
   }
   for (int n = 0; n < 20; n++) {
      bson_t *by_id = doc ("{\"_id\": \"c-kept-%s-%d\"}", phase, n);
      NEED (mongoc_collection_insert_one (items, doc ("{\"_id\": \"c-kept-%s-%d\", \"n\": %d}", phase, n, n), NULL, NULL, &error));
      NEED (mongoc_collection_update_one (items, by_id, doc ("{\"$inc\": {\"n\": %d}}", n), NULL, NULL, &error));
   }
}

/* Cursors, a session and a change stream that are open while the phase changes. */
static void over_the_change (void)
{
   char line[100], after[300];
   bson_t *options = bson_new ();
   insert_many (items, 300);
   insert_many (accounts, 300);
   mongoc_cursor_t *open[] = {in_order (items), in_order (accounts)};
   read_on (open[0], 0, 30);
   read_on (open[1], 0, 30);
   mongoc_client_session_t *session = mongoc_client_start_session (client, NULL, &error);
   NEED (session && mongoc_client_session_append (session, options, &error));
   NEED (mongoc_collection_insert_one (items, doc ("{\"_id\": \"%s-s\", \"n\": 1}", run), options, NULL, &error));
   snprintf (after, sizeof after, "%s-after", run);
   mongoc_change_stream_t *stream = watched (after);
   puts ("ready");
   fflush (stdout);
   NEED (fgets (line, sizeof line, stdin));
   for (int n = 0; n < 2; n++) {
      read_on (open[n], 30, 300);
      is_at_its_end (open[n]);
   }
   NEED (mongoc_collection_update_one (items, doc ("{\"_id\": \"%s-s\"}", run), doc ("{\"$inc\": {\"n\": 1}}"), options, NULL, &error));
   NEED (field (items, doc ("{\"_id\": \"%s-s\"}", run), "n") == 2);
   mongoc_client_session_destroy (session);
   bson_destroy (options);
   NEED (mongoc_collection_insert_one (feed, doc ("{\"_id\": \"%s\"}", after), NULL, NULL, &error));
   next_event (stream, "insert");
   mongoc_change_stream_destroy (stream);
   NEED (deleted (feed, doc ("{\"_id\": \"%s\"}", after)) == 1);
   NEED (deleted (items, doc ("{\"run\": \"%s\"}", run)) == 300 && deleted (items, doc ("{\"_id\": \"%s-s\"}", run)) == 1);
   NEED (deleted (accounts, doc ("{\"run\": \"%s\"}", run)) == 300);
}

static void prepare (void)
{
   if (strcmp (phase, "plain") || across) {
      return;
   }
   const char *made[] = {"items", "accounts", "orders", "stock"};
   for (int n = 0; n < 4; n++) {
      bool by_email = n == 1;
      bson_t *command = doc ("{\"createIndexes\": \"%s\", \"indexes\": [{\"key\": {\"%s\": 1}, \"name\": \"%s_1\", \"unique\": %s}]}", made[n],
                             by_email ? "email" : "run", by_email ? "email" : "run", by_email ? "true" : "false");
      NEED (mongoc_client_command_simple (client, "app", command, NULL, NULL, &error));
   }
}

static void check (const char *name, void (*function) (void))
{
   snprintf (run, sizeof run, "c-%s-%s-%s", phase, across ? across : "run", name);
   function ();
   forget ();
   printf ("ok %s\n", name);
   fflush (stdout);
}

#define CHECK(function) check (#function, function)

int main (void)
{
   phase = getenv ("RESHARD_PHASE");
   across = getenv ("RESHARD_ACROSS");
   migrates = strcmp (phase, "plain");
   mixed = !strcmp (phase, "half");
   moved = !strcmp (phase, "moved");
   mongoc_init ();
   client = connected ("&appname=driver-test");
   items = mongoc_client_get_collection (client, "app", "items");
   accounts = mongoc_client_get_collection (client, "app", "accounts");
   feed = mongoc_client_get_collection (client, "app", "feed");
   tags = mongoc_client_get_collection (client, "app", "tags");
   prepare ();
   if (across) {
      CHECK (over_the_change);
   } else {
      CHECK (one_document);
      CHECK (bulk);
      CHECK (cursors);
      CHECK (aggregates);
      CHECK (find_and_modify);
      CHECK (transactions);
      CHECK (failures_are_retried);
      CHECK (change_streams);
      CHECK (grid_fs);
      CHECK (compressed);
      CHECK (without_acknowledgement);
      CHECK (pools);
      CHECK (collections);
      CHECK (what_was_kept);
   }
   mongoc_collection_destroy (items);
   mongoc_collection_destroy (accounts);
   mongoc_collection_destroy (feed);
   mongoc_collection_destroy (tags);
   mongoc_client_destroy (client);
   mongoc_cleanup ();
   return 0;
}
