/* Retryable reads and writes, and clients that come and go, while the primaries of both clusters step down.
 *
 * Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it says "ready" once it works,
 * and goes on until a line comes: then each write that was acknowledged counts once, and nobody has seen an error. */

#include <mongoc/mongoc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* So many more, each, once both clusters have their new primaries. */
enum { WORKERS = 4, VISITORS = 2, AFTERWARDS = 20 };

static mongoc_client_pool_t *pool;
static atomic_bool go, failed;
static atomic_int written[WORKERS], visits;

static mongoc_collection_t *collection_of (mongoc_client_t *client, const char *name)
{
   return mongoc_client_get_collection (client, "app", name);
}

/* Whatever it is, an application would have seen it. */
static bool seen (bool done, const char *what, const bson_error_t *error)
{
   if (!done) {
      printf ("FAILED %s: %u: %s\n", what, error->code, error->message);
      failed = true;
   }
   return done;
}

static int64_t count (mongoc_collection_t *items, const bson_t *filter)
{
   bson_error_t error;
   int64_t found = mongoc_collection_count_documents (items, filter, NULL, NULL, NULL, &error);
   return seen (found >= 0, "count", &error) ? found : -1;
}

static void write_once (int number)
{
   bson_error_t error;
   char name[20];
   snprintf (name, sizeof name, "count-%d", number);
   mongoc_client_t *client = mongoc_client_pool_pop (pool);
   mongoc_collection_t *items = collection_of (client, "items");
   bson_t *by_id = BCON_NEW ("_id", BCON_UTF8 (name)), *inc = BCON_NEW ("$inc", "{", "n", BCON_INT64 (1), "}");
   bson_t *upsert = BCON_NEW ("upsert", BCON_BOOL (true));
   if (seen (mongoc_collection_update_one (items, by_id, inc, upsert, NULL, &error), "update", &error)) {
      written[number]++;
      bson_oid_t id;
      bson_oid_init (&id, NULL);
      bson_t *made = BCON_NEW ("_id", BCON_OID (&id), "by", BCON_INT32 (number)), *again = BCON_NEW ("_id", BCON_OID (&id));
      if (seen (mongoc_collection_insert_one (items, made, NULL, NULL, &error), "insert", &error) && count (items, again) != 1) {
         printf ("FAILED what was inserted is not there\n");
         failed = true;
      }
      bson_destroy (made);
      bson_destroy (again);
   }
   bson_destroy (by_id);
   bson_destroy (inc);
   bson_destroy (upsert);
   mongoc_collection_destroy (items);
   mongoc_client_pool_push (pool, client);
}

/* A client that does one thing, and goes. */
static void visit (void)
{
   mongoc_client_t *visitor = mongoc_client_new (getenv ("RESHARD_URI"));
   mongoc_collection_t *items = collection_of (visitor, "items");
   bson_t *seed = BCON_NEW ("_id", BCON_UTF8 ("seed"));
   if (count (items, seed) != 1) {
      printf ("FAILED a visitor\n");
      failed = true;
   }
   bson_destroy (seed);
   mongoc_collection_destroy (items);
   mongoc_client_destroy (visitor);
   visits++;
}

static void *until_the_end (void *argument)
{
   int number = *(int *) argument;
   for (int left = AFTERWARDS; left > 0 && !failed; left -= go) {
      if (number < WORKERS) {
         write_once (number);
      } else {
         visit ();
      }
   }
   return NULL;
}

static void each_counts_once (mongoc_collection_t *items)
{
   for (int number = 0; number < WORKERS; number++) {
      char name[20];
      snprintf (name, sizeof name, "count-%d", number);
      bson_t *all = BCON_NEW ("_id", BCON_UTF8 (name), "n", BCON_INT64 (written[number]));
      bson_t *by = BCON_NEW ("by", BCON_INT32 (number));
      int64_t right = count (items, all), inserted = count (items, by);
      if (right != 1 || inserted != written[number]) {
         printf ("FAILED worker %d: %d were acknowledged, counted right: %d, inserted: %d\n", number, written[number], (int) right,
                 (int) inserted);
         failed = true;
      }
      bson_destroy (all);
      bson_destroy (by);
   }
}

static void make (mongoc_client_t *client)
{
   const char *names[] = {"items", "accounts", "orders", "stock"};
   bson_t *seed = BCON_NEW ("_id", BCON_UTF8 ("seed"));
   for (int n = 0; n < 4; n++) {
      bson_error_t error;
      mongoc_collection_t *collection = collection_of (client, names[n]);
      seen (mongoc_collection_insert_one (collection, seed, NULL, NULL, &error), names[n], &error);
      mongoc_collection_destroy (collection);
   }
   bson_destroy (seed);
}

static bool enough (void)
{
   for (int number = 0; number < WORKERS; number++) {
      if (written[number] < 5) {
         return failed;
      }
   }
   return true;
}

static void work (void)
{
   pthread_t threads[WORKERS + VISITORS];
   int numbers[WORKERS + VISITORS];
   char line[100];
   for (int n = 0; n < WORKERS + VISITORS; n++) {
      numbers[n] = n;
      pthread_create (&threads[n], NULL, until_the_end, &numbers[n]);
   }
   while (!enough ()) {
      usleep (10000);
   }
   printf ("ready\n");
   go = fgets (line, sizeof line, stdin) != NULL;
   for (int n = 0; n < WORKERS + VISITORS; n++) {
      pthread_join (threads[n], NULL);
   }
}

int main (void)
{
   setvbuf (stdout, NULL, _IOLBF, 0);
   mongoc_init ();
   mongoc_uri_t *uri = mongoc_uri_new (getenv ("RESHARD_URI"));
   pool = mongoc_client_pool_new (uri);
   mongoc_client_t *client = mongoc_client_pool_pop (pool);
   if (getenv ("RESHARD_ACROSS")) {
      mongoc_collection_t *items = collection_of (client, "items");
      work ();
      each_counts_once (items);
      printf ("%d visits\n", visits);
      mongoc_collection_destroy (items);
   } else {
      make (client);
   }
   mongoc_client_pool_push (pool, client);
   mongoc_client_pool_destroy (pool);
   mongoc_uri_destroy (uri);
   mongoc_cleanup ();
   return failed;
}
