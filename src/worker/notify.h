
/*
 * Copyright (C) The nginx referral module authors
 *
 * The notification protocol of systemd (sd_notify(3)), without its library.
 */


#ifndef _REFERRAL_NOTIFY_H_INCLUDED_
#define _REFERRAL_NOTIFY_H_INCLUDED_


/* reads NOTIFY_SOCKET and WATCHDOG_USEC; without them nothing is sent */
void referral_notify_init(void);

void referral_notify_ready(void);
void referral_notify_reloading(void);
void referral_notify_stopping(void);

/* what "systemctl status" shows; sent only when it differs */
void referral_notify_status(const char *status);

/*
 * Feeds the watchdog, not more often than it needs.  Called after progress
 * and in waits that have a name, nowhere else: a worker that hangs in any
 * other way is restarted.
 */
void referral_notify_alive(void);


#endif /* _REFERRAL_NOTIFY_H_INCLUDED_ */
