/* Tell the service manager that this is ready (sd_notify(3)), and stay. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (path == NULL || strlen(path) >= sizeof address.sun_path) {
        fputs("no NOTIFY_SOCKET\n", stderr);
        return 1;
    }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (sendto(fd, "READY=1", 7, 0, (void *)&address, sizeof address) != 7) {
        perror("sendto");
        return 1;
    }
    sleep(2);
    return 0;
}
